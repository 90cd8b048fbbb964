// The explorer's view. It draws one or two networks and asks a *backend* for numbers:
//
//   state               {get(name), set({name: value}), watch(name => …)}: what is shown
//   about()             the networks, classes and the strip of pictures
//   look(question, early)   every F(x) for one picture, under one lesion, at one iteration;
//                       `early` is told the logits, before the maps are on their way
//   kernel(question)    the weights behind one channel, and the maps they read
//   judge(question)     how many of the next test images are right under the lesion
//   own(pixels)         take a picture that is not in the test set, Uint8Array 3·32·32;
//                       whoever shows that one is told through `watch`
//
// In a notebook the backend is PyTorch in the kernel (`kernelBackend` below); the page
// without a kernel brings another. Read from the bottom: `render`, `mount`, `View`.

const SIZE = 32; // pixels of a picture, each way
export const OWN = -1; // the number of a picture of one's own
const STEPS = ["x", "f", "sum", "out"];
const POINT_AT_A_MAP =
  "Point at a map to read its values and to see the patch of the picture that this pixel " +
  "sees. Click it to see its arithmetic.";
const MIXED =
  "This plain block is weakened: its output is a mixture of F(x) after the ReLU and of x, " +
  "which a shortcut lends it.";
const UNTRAINED =
  "The network is untrained. In evaluation mode its BN layers divide by running statistics " +
  "that nobody has measured yet, so its numbers grow from block to block and the softmax " +
  "looks certain. It knows nothing.";
const COLOURS = { residual: "#0072B2", plain: "#D55E00", neutral: "#767676" };

// --- small tools ------------------------------------------------------------------------

/** An element: h("button.cls", {onclick, "aria-label": …}, child, "text"). */
function h(kind, props = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  assign(element, props);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** The same in SVG. */
function svg(tag, props = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  assign(element, props);
  element.append(...children);
  return element;
}

function assign(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined)
      element.setAttribute(name, value);
  }
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const number = (value, digits = 3) => {
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
};
const thousands = (count) => count.toLocaleString("en");
const percent = (value) => `${(100 * value).toFixed(value > 0.0995 ? 0 : 1)} %`;

/** Of an array from the kernel, whose JSON knows no number but finite ones. */
function softmax(array) {
  const logits = array.map((logit) => logit ?? NaN);
  const top = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - top));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

/** The place of the largest value; 0 where one is no number. */
const best = (values) => Math.max(0, values.indexOf(Math.max(...values)));

/** Whether the ground under an element is dark, whatever application drew it. */
function onDarkGround(element) {
  for (let e = element; e; e = e.parentElement) {
    const parts = getComputedStyle(e).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (parts && (parts.length < 4 || parts[3] > 0.5))
      return 0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2] < 110;
  }
  return false;
}

/** How bright a colour looks, from 0 to 1, as the rules on contrast define it. */
function luminance(...colour) {
  const [r, g, b] = colour.map((part) => (part / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** 256 colours from blue over the ground to red. */
function palette(dark) {
  const [low, middle, high] = dark
    ? [[88, 166, 255], [24, 24, 27], [255, 110, 90]]
    : [[8, 81, 170], [250, 250, 250], [178, 24, 43]];
  const table = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) {
    const t = (i - 127.5) / 127.5;
    const end = t < 0 ? low : high;
    const share = Math.abs(t) ** 0.8;
    for (let c = 0; c < 3; c++)
      table[4 * i + c] = middle[c] + (end[c] - middle[c]) * share;
    table[4 * i + 3] = 255;
  }
  return table;
}

/** Draw one channel of a tensor, a canvas pixel for each number. */
function paint(canvas, tensor, channel, limit, colours) {
  const [, height, width] = tensor.shape;
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const start = channel * height * width;
  for (let i = 0; i < height * width; i++) {
    const value = tensor.data[start + i] / limit;
    const index = 4 * clamp(Math.round(127.5 + 127.5 * value), 0, 255);
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = colours[index + c];
  }
  context.putImageData(image, 0, 0);
}

/** Draw a picture, Uint8Array of 3·32·32. */
function paintPicture(canvas, pixels) {
  canvas.width = canvas.height = SIZE;
  const context = canvas.getContext("2d");
  const image = context.createImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[c * SIZE * SIZE + i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// --- arithmetic -------------------------------------------------------------------------
// The backend sends F(x) of every block, and x where the shortcut does something. The rest
// is worked out here, in 32 bits as PyTorch does.

const relu = (value) => (value < 0 ? 0 : value); // what is no number stays none

function combine(one, other, rule) {
  const data = new Float32Array(one.data.length);
  for (let i = 0; i < data.length; i++) data[i] = rule(one.data[i], other.data[i]);
  return { data, shape: one.shape };
}

/** The four steps of every block of a network: {name: {x, f, sum, out}}. */
export function stepsOf(about, parts, scales) {
  const first = parts["stem.f"];
  const steps = {
    stem: { x: parts.input, f: first, sum: first, out: combine(first, first, relu) },
  };
  let before = steps.stem.out;
  for (const block of about.blocks) {
    const f = parts[`${block.name}.f`];
    const x = parts[`${block.name}.x`] ?? before;
    const scale = scales[block.name] ?? 1;
    let sum, out;
    if (block.residual) {
      sum = combine(f, x, (a, b) => Math.fround(scale * a) + b);
      out = combine(sum, sum, relu);
    } else {
      sum = f; // nothing is added
      out =
        scale === 1
          ? combine(f, f, relu)
          : combine(f, x, (a, b) => scale * relu(a) + (1 - scale) * b);
    }
    steps[block.name] = { x, f, sum, out };
    before = out;
  }
  return steps;
}

/** For every channel of a tensor its mean absolute value. */
function strengths(tensor) {
  const [channels, height, width] = tensor.shape;
  const area = height * width;
  return Array.from({ length: channels }, (_, channel) => {
    let total = 0;
    for (let i = channel * area; i < (channel + 1) * area; i++)
      total += Math.abs(tensor.data[i]);
    return total / area;
  });
}

const norm = (tensor) => Math.sqrt(tensor.data.reduce((sum, v) => sum + v * v, 0));
/** The largest absolute value; what is no number does not count. */
const largest = ({ data }) =>
  data.reduce((top, v) => (Math.abs(v) > top ? Math.abs(v) : top), 0);

function at(tensor, channel, row, column) {
  const [channels, height, width] = tensor.shape;
  if (channel >= channels || row < 0 || column < 0 || row >= height || column >= width)
    return 0; // the border of zeros around every map
  return tensor.data[(channel * height + row) * width + column];
}

/**
 * The rectangle of the picture that a pixel of a block's step depends on, as
 * [first row, last row, first column, last column]. A block that is off lets only its
 * shortcut through.
 */
export function receptiveField(about, scales, block, step, row, column) {
  let [rows, columns] = [[row, row], [column, column]];
  /** Through a layer, to the pixels of its input that there are. */
  const back = (size, stride, reach) => {
    const to = ([low, high]) =>
      [low * stride - reach, high * stride + reach].map((at) => clamp(at, 0, size - 1));
    [rows, columns] = [to(rows), to(columns)];
  };
  const sizes = [SIZE]; // of the maps that each block reads
  for (const { stride } of about.blocks) sizes.push(Math.ceil(sizes.at(-1) / stride));
  const last = about.blocks.findIndex((one) => one.name === block);
  for (let i = last; i >= 0; i--) {
    const { name, stride } = about.blocks[i];
    const branch = i === last ? { x: false, f: true }[step] : undefined;
    if (branch ?? scales[name] !== 0) {
      back(sizes[i + 1], 1, 1); // the second convolution
      back(sizes[i], stride, 1); // the first
    } else {
      back(sizes[i], stride, 0);
    }
  }
  back(SIZE, 1, 1); // the stem
  return [...rows, ...columns];
}

/**
 * How one number of F(x) came about: for every channel read its 3×3 window, the weights,
 * and the sum of their products; then BN.
 */
export function workOut({ weights, maps, scale, shift }, row, column) {
  const channels = [];
  let total = 0;
  for (let c = 0; c < maps.shape[0]; c++) {
    const window = [];
    const kernel = [];
    let sum = 0;
    for (let k = 0; k < 9; k++) {
      window.push(at(maps, c, row + Math.floor(k / 3) - 1, column + (k % 3) - 1));
      kernel.push(weights[9 * c + k]);
      sum += window[k] * kernel[k];
    }
    channels.push({ channel: c, window, kernel, sum });
    total += sum;
  }
  return { channels, total, value: scale * total + shift };
}

// --- pictures ---------------------------------------------------------------------------

const KINDS = [
  ["89504e470d0a1a0a", "PNG"],
  ["ffd8ff", "JPEG"],
  ["47494638", "GIF"],
  ["424d", "BMP"],
  ["52494646", "WebP"],
];

/**
 * A picture file as Uint8Array 3·32·32: the middle square, shrunk in the browser, so that
 * a file of any size will do. Throws a sentence for what is no picture.
 */
export async function readPicture(file) {
  const head = new Uint8Array(await file.slice(0, 64).arrayBuffer().catch(() => []));
  const hex = [...head].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const kind = KINDS.find(([start]) => hex.startsWith(start))?.[1];
  if (!kind) {
    const svgFile = /svg/.test(file.type) || /\.svg$/i.test(file.name);
    const why = svgFile ? "it is a drawing (SVG)" : "it is no picture";
    throw new Error(`${file.name} cannot be shown: ${why}. Choose a PNG or JPEG file.`);
  }
  let bitmap;
  try {
    const deep = kind === "PNG" && head[24] === 16 && head[25] === 0 && head[28] === 0;
    bitmap = deep ? await readDeepGrey(file) : await createImageBitmap(file);
  } catch {
    const why = "it is damaged or too large";
    throw new Error(`${file.name} cannot be shown: ${why}. Choose another file.`);
  }
  const pixels = shrink(bitmap);
  bitmap.close?.(); // a large picture's memory, now and not some day
  return pixels;
}

/** The middle square of a bitmap or canvas, 32 × 32; what is transparent becomes white. */
function shrink(source) {
  let side = Math.min(source.width, source.height);
  let [left, top] = [(source.width - side) / 2, (source.height - side) / 2];
  // Halve, and halve again: one large step would skip most pixels.
  for (let now = source; ; ) {
    const next = Math.max(SIZE, Math.ceil(side / 2));
    const canvas = h("canvas", { width: next, height: next });
    const context = canvas.getContext("2d", { willReadFrequently: next === SIZE });
    context.fillStyle = "white";
    context.fillRect(0, 0, next, next);
    context.imageSmoothingEnabled = side > SIZE;
    context.imageSmoothingQuality = "high";
    context.drawImage(now, left, top, side, side, 0, 0, next, next);
    if (next === SIZE) {
      const { data } = context.getImageData(0, 0, SIZE, SIZE);
      return Uint8Array.from({ length: 3 * SIZE * SIZE }, (_, i) => {
        const [channel, pixel] = [Math.floor(i / SIZE ** 2), i % SIZE ** 2];
        return data[4 * pixel + channel];
      });
    }
    [now, side, left, top] = [canvas, next, 0, 0];
  }
}

/**
 * A grey PNG of 16 bits. Browsers keep the upper eight, which leaves next to nothing of
 * 12-bit values (0 to 4,095); so this reads the file itself.
 */
async function readDeepGrey(file) {
  const bytes = new DataView(await file.arrayBuffer());
  const [width, height] = [bytes.getUint32(16), bytes.getUint32(20)];
  const pieces = [];
  for (let place = 8; place + 12 <= bytes.byteLength; ) {
    const length = bytes.getUint32(place);
    if (bytes.getUint32(place + 4) === 0x49444154)
      pieces.push(new Uint8Array(bytes.buffer, place + 8, length)); // IDAT
    place += 12 + length;
  }
  const inflated = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate"));
  const lines = new Uint8Array(await new Response(inflated).arrayBuffer());
  const pitch = 2 * width;
  if (lines.length < height * (pitch + 1)) throw new Error("too short");
  const rows = new Uint8Array(height * pitch);
  for (let y = 0; y < height; y++) {
    const filter = lines[y * (pitch + 1)];
    for (let x = 0; x < pitch; x++) {
      const a = x >= 2 ? rows[y * pitch + x - 2] : 0;
      const b = y ? rows[(y - 1) * pitch + x] : 0;
      const c = x >= 2 && y ? rows[(y - 1) * pitch + x - 2] : 0;
      const guess = [0, a, b, (a + b) >> 1, paeth(a, b, c)][filter];
      rows[y * pitch + x] = lines[y * (pitch + 1) + 1 + x] + guess;
    }
  }
  const value = (i) => 256 * rows[2 * i] + rows[2 * i + 1];
  let top = 0;
  for (let i = 0; i < width * height; i++) top = Math.max(top, value(i));
  const steps = top < 4096 ? 16 : 256;
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.fill(value(i) / steps, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function paeth(a, b, c) {
  const [da, db, dc] = [b - c, a - c, a + b - 2 * c].map(Math.abs);
  return da <= db && da <= dc ? a : db <= dc ? b : c;
}

// --- the view ---------------------------------------------------------------------------

class View {
  constructor(root, backend) {
    this.root = root;
    this.backend = backend;
    this.state = backend.state; // what is wanted; the answers to it may be on their way
    this.asked = null; // the question that the maps on the screen answer
    this.lesion = {}; // and its scales
    this.looks = {}; // by network: what the backend said, and the steps worked out
    this.have = null; // which maps need not be sent again: those of these scales and keys
    this.kernels = new Map(); // by network, block and channel
    this.hover = null; // the pixel under the pointer,
    this.over = null; // and the step whose map it is on
    this.running = false; // an answer is on its way,
    this.again = false; // and the state has changed since
    this.judging = null; // the lesion and weights whose accuracy is counted
    this.gone = false;
  }

  async start() {
    this.veil = h("div.rx-veil", { role: "alert", hidden: true });
    this.body = h("div.rx-body");
    this.say = h("div.rx-say", { role: "status", "aria-live": "polite" });
    this.spoken = h("div.rx-spoken", { role: "status" }); // for who cannot see the maps
    this.root.replaceChildren(this.body, this.say, this.spoken, this.veil);
    this.showSaved(); // until somebody answers
    this.backend.silent = (words) => this.cover(words);
    const { about, thumbnails } = await this.backend.about();
    if (this.gone) return;
    this.about = about;
    this.thumbnails = thumbnails;
    this.build();
    this.watchLook();
    this.unwatch = this.state.watch((name) => this.changed(name));
    await this.refresh();
  }

  stop() {
    this.unwatch?.();
    this.unwatchLook?.();
    clearInterval(this.player);
    this.gone = true;
  }

  /** Lay a veil over a picture that nobody answers for; null takes it off. */
  cover(words) {
    this.veil.hidden = !words;
    this.body.inert = Boolean(words);
    if (words) this.veil.replaceChildren(h("p", {}, words));
  }

  showSaved() {
    const saved = this.state.get("saved");
    if (!saved?.byteLength) return;
    const address = URL.createObjectURL(new Blob([saved], { type: "image/png" }));
    const onload = () => URL.revokeObjectURL(address);
    const alt = this.state.get("words");
    this.body.append(h("img.rx-saved", { src: address, alt, onload }));
  }

  // - what is shown -

  get net() {
    return this.about.nets.find((net) => net.title === this.state.get("net"));
  }

  get block() {
    const name = this.state.get("block");
    const block = this.net.blocks.find((one) => one.name === name);
    return block ?? { name: "stem", channels: this.net.stem, stride: 1, stem: true };
  }

  get steps() {
    return this.looks[this.net.title]?.steps[this.block.name];
  }

  /** The channel shown: the chosen one, or the one where F(x) is strongest. */
  get channel() {
    const chosen = this.state.get("channel");
    const [channels] = this.steps.f.shape;
    if (chosen >= 0 && chosen < channels) return chosen;
    return best(strengths(this.steps.f));
  }

  get pixel() {
    const [row, column] = this.state.get("pixel");
    if (row === undefined || !this.steps) return null;
    const [, height, width] = this.steps.out.shape;
    return [clamp(row, 0, height - 1), clamp(column, 0, width - 1)];
  }

  colourOf(net) {
    return net.blocks[0].residual ? COLOURS.residual : COLOURS.plain;
  }

  set(values) {
    this.state.set(values);
  }

  changed(name) {
    if (["scales", "picture", "iteration"].includes(name)) this.refresh();
    else this.draw(name === "net" || name === "block" ? "block" : name);
  }

  // - questions -

  /** Ask for what the state wants; while an answer is on its way, only the last counts. */
  async refresh() {
    this.again = true;
    if (this.running) return;
    this.running = true;
    while (this.again && !this.gone) {
      this.again = false;
      const question = {
        scales: this.state.get("scales"),
        picture: this.state.get("picture"),
        iteration: this.state.get("iteration"),
      };
      try {
        const early = (answer) => this.takeAnswers(question, answer);
        const asked = { ...question, have: this.have };
        this.takeMaps(question, await this.backend.look(asked, early));
      } catch (error) {
        this.tell(error.message);
      }
    }
    this.running = false;
  }

  /** Show the probabilities; the maps follow. */
  takeAnswers({ scales, picture }, { label, nets }) {
    this.drawAnswers(scales, this.caption(picture, label), label, nets);
    this.root.dataset.answers = Number(this.root.dataset.answers ?? 0) + 1;
  }

  takeMaps(question, { pixels, label, nets }) {
    if (question.picture !== OWN) this.tell(""); // it was of another picture
    this.pixels = pixels;
    this.label = label;
    this.asked = question;
    this.lesion = question.scales;
    this.kernels.clear();
    for (const net of nets) {
      const about = this.about.nets.find((one) => one.title === net.title);
      const parts = { ...this.looks[net.title]?.parts, ...net.parts };
      const steps = stepsOf(about, parts, question.scales);
      this.looks[net.title] = { ...net, parts, steps };
    }
    const keys = Object.fromEntries(nets.map((net) => [net.title, net.key]));
    this.have = { scales: question.scales, keys };
    this.root.dataset.looks = Number(this.root.dataset.looks ?? 0) + 1;
    this.draw("all"); // the tiles go by the number of the look
    this.judge(question);
  }

  /** The accuracy: of 200 images first, then of more and more, until the lesion or the weights change. */
  async judge(question) {
    const weights = Object.values(this.looks).map((net) => net.weights); // trained since?
    const key = JSON.stringify([question.scales, question.iteration, weights]);
    if (key === this.judging) return;
    this.judging = key;
    delete this.accuracy.dataset.seen;
    this.accuracy.textContent = "counting right answers …";
    const right = {};
    let seen = 0;
    await new Promise((resolve) => setTimeout(resolve, 150)); // the picture comes first
    while (seen < this.about.judged && this.judging === key && !this.gone) {
      try {
        const found = await this.backend.judge({ ...question, start: seen });
        if (this.judging !== key) return;
        seen += found.of;
        for (const [title, count] of Object.entries(found.right))
          right[title] = (right[title] ?? 0) + count;
      } catch (error) {
        return this.tell(error.message);
      }
      const { judged } = this.about;
      if (seen % 200 === 0 || seen >= judged || judged <= 200) this.drawAccuracy(right, seen);
    }
  }

  async kernel() {
    const { name } = this.block;
    const channel = this.channel;
    const key = [this.net.title, name, channel].join("/");
    if (!this.kernels.has(key)) {
      const question = { ...this.asked, net: this.net.title, block: name, channel };
      this.kernels.set(key, this.backend.kernel(question));
    }
    return this.kernels.get(key);
  }

  tell(words) {
    this.say.textContent = words;
  }

  // - building, once -

  build() {
    const { about } = this;
    this.strip = this.buildStrip();
    this.picture = h("canvas.rx-map", { role: "img", "aria-label": "the picture" });
    this.field = h("div.rx-field", { hidden: true });
    this.answers = h("div.rx-answers");
    this.accuracy = h("p.rx-accuracy", { role: "status" });
    this.maps = about.nets.map((net) => this.buildMap(net));
    this.buildBlock();
    this.windows = h("div.rx-windows", { role: "region", "aria-label": "the pixel" });
    this.body.replaceChildren(
      this.strip,
      h("div.rx-top", {}, this.framed(this.picture, this.field), this.answers),
      this.accuracy,
      ...this.maps.map((map) => map.root),
      this.blockPanel,
      this.windows,
    );
    this.time = this.buildTime();
    if (this.time) this.body.append(this.time.root);
    this.body.append(h("p.rx-note", {}, about.note));
    this.acceptFiles();
  }

  framed(canvas, ...over) {
    return h("div.rx-frame", {}, canvas, ...over);
  }

  buildStrip() {
    const { classes, pictures } = this.about;
    this.thumbs = pictures.map((picture, i) => {
      const canvas = h("canvas.rx-map");
      paintPicture(canvas, this.thumbnails.subarray(3072 * i, 3072 * (i + 1)));
      const words = `${classes[picture.label]}, test image ${picture.index}`;
      return h(
        `button.rx-thumb${picture.mistake ? ".rx-mistake" : ""}`,
        {
          type: "button",
          title: picture.mistake ? `${words}: a confident mistake` : words,
          "aria-label": picture.mistake ? `${words}, a confident mistake` : words,
          onclick: () => this.set({ picture: picture.index }),
        },
        canvas,
      );
    });
    this.roving(this.thumbs);
    const input = h("input", {
      type: "file",
      accept: "image/*",
      "aria-label": "open a picture of your own",
      onchange: () => {
        const [file] = input.files;
        input.value = ""; // so that the same one can be chosen again
        if (file) this.load(file);
      },
    });
    this.padButton = h(
      "button.rx-button",
      { type: "button", "aria-expanded": "false", onclick: () => this.togglePad() },
      "draw one",
    );
    this.pad = h("div.rx-pad", { hidden: true });
    return h(
      "section.rx-strip",
      { "aria-label": "pictures" },
      h("div.rx-thumbs", { role: "group", "aria-label": "test images" }, ...this.thumbs),
      h(
        "div.rx-own",
        {},
        h("label.rx-button", {}, "open a picture", input),
        this.padButton,
        h("span.rx-hint", {}, "or drop or paste one; framed in red: confident mistakes"),
      ),
      this.pad,
    );
  }

  /** Arrow keys move between the buttons of a group; Tab leaves it. */
  roving(buttons) {
    buttons.forEach((button, i) => {
      button.tabIndex = i ? -1 : 0;
      button.addEventListener("rx-key", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        const to = { Home: buttons[0], End: buttons.at(-1) }[event.key];
        const next = to ?? (step ? buttons[clamp(i + step, 0, buttons.length - 1)] : null);
        if (!next) return;
        event.preventDefault();
        for (const one of buttons) one.tabIndex = one === next ? 0 : -1;
        next.focus();
      });
    });
  }

  acceptFiles() {
    const { root } = this;
    root.ondragover = (event) => event.preventDefault();
    root.ondrop = (event) => {
      event.preventDefault();
      this.load(event.dataTransfer.files[0]);
    };
    root.onpaste = (event) => this.load(event.clipboardData.files[0]);
  }

  /** Show a file that was chosen, dropped or pasted; undefined where it was no file. */
  async load(file) {
    if (!file) return this.tell("That is no picture file. Drop or paste a PNG or JPEG.");
    try {
      await this.showOwn(await readPicture(file));
      this.tell(`${file.name}: the middle square, shrunk to 32 × 32 pixels.`);
    } catch (error) {
      this.tell(error.message);
    }
  }

  async showOwn(pixels) {
    await this.backend.own(pixels);
    this.set({ picture: OWN });
  }

  togglePad() {
    const open = this.pad.hidden;
    this.pad.hidden = !open;
    this.padButton.setAttribute("aria-expanded", String(open));
    if (open && !this.pad.firstChild) buildPad(this.pad, (pixels) => this.showOwn(pixels));
  }

  buildMap(net) {
    const nodes = {};
    const node = (name, label) => {
      const canvas = h("canvas.rx-map");
      const button = h(
        "button.rx-node",
        {
          type: "button",
          onclick: () => this.set({ net: net.title, block: name, channel: -1 }),
        },
        canvas,
      );
      nodes[name] = { button, canvas, label };
      return button;
    };
    const stem = node("stem", "the stem");
    const cells = [h("div.rx-cell", {}, wire(false), stem, h("span.rx-name", {}, "stem"))];
    for (const block of net.blocks) {
      const toggle = h(
        "button.rx-switch",
        {
          type: "button",
          role: "switch",
          title: "switch the branch on or off",
          "aria-label": `branch of ${block.name}, ${net.title}`,
          onclick: () => this.toggle(block.name),
        },
        block.name.replace("layer", ""),
      );
      const cell = h(
        "div.rx-cell",
        {},
        wire(block.residual, block.stride > 1),
        node(block.name, block.name),
        toggle,
      );
      if (block.stride > 1) cell.classList.add("rx-new-stage");
      nodes[block.name].cell = cell;
      nodes[block.name].toggle = toggle;
      cells.push(cell);
    }
    const head = h("span.rx-pool", {}, "mean, linear");
    cells.push(h("div.rx-cell.rx-head", {}, wire(false), head));
    const verdict = h("span.rx-verdict", { role: "status" });
    const root = h(
      "section.rx-net",
      { "aria-label": `map of the network ${net.title}` },
      h("h4", {}, net.title, verdict),
      h("div.rx-cells", {}, ...cells),
    );
    root.style.setProperty("--rx-net", this.colourOf(net));
    this.roving(Object.values(nodes).map((one) => one.button));
    return { net, root, nodes, verdict };
  }

  toggle(name) {
    const scales = { ...this.state.get("scales") };
    if (scales[name] === 0) delete scales[name];
    else scales[name] = 0;
    this.set({ scales });
  }

  buildBlock() {
    this.blockTitle = h("h4");
    this.blockWords = h("p.rx-words");
    this.slider = h("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.05,
      "aria-label": "F(x) ×, the factor on the branch",
      oninput: () => this.scale(Number(this.slider.value)),
    });
    this.sliderValue = h("output");
    this.wholeButton = h(
      "button.rx-button",
      { type: "button", onclick: () => this.set({ scales: {} }) },
      "make all whole",
    );
    this.panels = Object.fromEntries(STEPS.map((step) => [step, this.buildPanel(step)]));
    this.colourBar = h("div.rx-bar", { "aria-hidden": "true" });
    this.tilesTitle = h("summary");
    this.tiles = h("div.rx-tiles", { role: "group", "aria-label": "channels, strongest first" });
    this.sliderRow = h(
      "div.rx-slider",
      {},
      h("label", {}, "F(x) × ", this.slider),
      this.sliderValue,
      this.wholeButton,
    );
    this.blockPanel = h(
      "section.rx-block",
      { "aria-label": "the block" },
      this.blockTitle,
      this.blockWords,
      this.sliderRow,
      h("div.rx-panels", {}, ...STEPS.map((step) => this.panels[step].root), this.colourBar),
      h(
        "details",
        { open: true },
        this.tilesTitle,
        this.tiles,
      ),
    );
  }

  scale(value) {
    const scales = { ...this.state.get("scales") };
    if (value === 1) delete scales[this.block.name];
    else scales[this.block.name] = value;
    this.set({ scales });
    this.drawSlider();
  }

  /** One of the four maps: a canvas, a crosshair, its value, and a histogram. */
  buildPanel(step) {
    const canvas = h("canvas.rx-map", {
      tabindex: 0,
      role: "application",
      "aria-roledescription": "feature map",
    });
    const cross = h("div.rx-cross", { hidden: true });
    const value = h("div.rx-value");
    const title = h("figcaption");
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      const part = (from, size, count) =>
        clamp(Math.floor((from / size) * count), 0, count - 1);
      return [
        part(event.clientY - box.top, box.height, canvas.height),
        part(event.clientX - box.left, box.width, canvas.width),
      ];
    };
    canvas.addEventListener("pointermove", (event) => this.point(place(event), step));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("click", (event) => this.pin(place(event)));
    canvas.addEventListener("rx-key", (event) => this.steer(event));
    const histogram = svg("svg", {
      class: "rx-histogram",
      viewBox: "0 0 100 30",
      preserveAspectRatio: "none",
      role: "img",
    });
    const frame = this.framed(canvas, cross);
    const root = h("figure.rx-panel", { "data-step": step }, title, frame, value, histogram);
    return { root, canvas, cross, value, title, histogram };
  }

  buildTime() {
    const net = this.about.nets.find((one) => one.kept.length);
    if (!net) return null;
    const plot = svg("svg", { class: "rx-curves", role: "img" });
    const step = Math.max(1, Math.round(net.iterations / 640));
    const slider = h("input", {
      type: "range",
      min: 0,
      max: step * Math.ceil(net.iterations / step), // its values are multiples of a step
      step,
      "aria-label": "iteration",
      oninput: () => {
        this.set({ iteration: Math.min(net.iterations, Number(slider.value)) });
        this.drawTimeSlider();
      },
    });
    const play = h("button.rx-button", { type: "button", onclick: () => this.play(net) }, "play");
    const words = h("p.rx-words");
    const root = h(
      "section.rx-time",
      { "aria-label": "time" },
      h("h4", {}, `the training of ${net.title}`),
      plot,
      h("div.rx-slider", {}, play, slider),
      words,
    );
    return { net, root, plot, slider, play, words };
  }

  /** From one kept iteration to the next, until the end. */
  play({ kept }) {
    const stop = () => {
      clearInterval(this.player);
      this.player = null;
      this.time.play.textContent = "play";
    };
    if (this.player) return stop();
    this.time.play.textContent = "stop";
    const now = this.state.get("iteration");
    let next = now >= kept.at(-1) ? 0 : kept.findIndex((one) => one > now);
    const step = () => {
      if (this.gone || next >= kept.length) return stop();
      this.set({ iteration: kept[next++] });
    };
    this.player = setInterval(step, 1200);
    step();
  }

  // - pixels -

  point(pixel, step) {
    this.hover = pixel;
    this.over = step;
    this.drawPixel();
  }

  pin(pixel) {
    this.set({ pixel });
  }

  steer(event) {
    const move = {
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    }[event.key];
    if (event.key === "Escape") return this.pin([]);
    if (!move) return;
    event.preventDefault();
    this.hover = null; // the pointer may still rest on a map
    const [, height, width] = this.steps.out.shape;
    const [row, column] = this.pixel ?? [height >> 1, width >> 1];
    const to = [clamp(row + move[0], 0, height - 1), clamp(column + move[1], 0, width - 1)];
    this.pin(to);
    const values = Object.values(this.panels)
      .filter((panel) => !panel.root.hidden)
      .map((panel) => `${panel.title.textContent} ${panel.value.textContent}`);
    this.spoken.textContent = `pixel (${to.join(", ")}): ${values.join(", ")}`;
  }

  // - drawing -

  /** Follow the application from light to dark, and the room that there is. */
  watchLook() {
    const look = () => {
      const dark = onDarkGround(this.root.parentElement ?? this.root);
      if (this.colours && dark === this.root.classList.contains("rx-dark")) return;
      this.root.classList.toggle("rx-dark", dark);
      this.colours = palette(dark);
      if (this.steps) this.draw("all");
    };
    look();
    const width = new ResizeObserver(([entry]) => {
      this.root.classList.toggle("rx-narrow", entry.contentRect.width < 600);
      if (this.asked) this.drawTime();
    });
    width.observe(this.root);
    const theme = new MutationObserver(look);
    for (const element of [document.documentElement, document.body])
      theme.observe(element, { attributes: true });
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", look);
    this.unwatchLook = () => {
      width.disconnect();
      theme.disconnect();
      system.removeEventListener("change", look);
    };
  }

  draw(what) {
    if (!this.steps || this.gone) return;
    if (what === "all") {
      this.drawPicture();
      this.drawMaps();
      this.drawTime();
    }
    if (what === "block") this.markBlock();
    if (what !== "pixel") this.drawBlock();
    this.drawPixel();
    this.drawWindows();
  }

  drawPicture() {
    paintPicture(this.picture, this.pixels);
    const index = this.state.get("picture");
    this.about.pictures.forEach((picture, i) => {
      this.thumbs[i].setAttribute("aria-pressed", String(picture.index === index));
    });
    this.picture.setAttribute("aria-label", this.caption(this.asked.picture, this.label));
  }

  caption(index, label) {
    if (index === OWN) return "your own picture";
    return `test image ${index}, ${this.about.classes[label]}`;
  }

  /** The probabilities, and over each map the verdict and the paths that are left. */
  drawAnswers(scales, caption, label, looks) {
    const { classes } = this.about;
    const hurt = Object.keys(scales).length > 0;
    const tables = this.maps.map(({ net, verdict }, number) => {
      const look = looks[number];
      const [now, whole] = [softmax(look.logits), softmax(look.whole)];
      verdict.textContent = this.verdict(net, scales, now, look.shown);
      const rows = classes.map((name, i) => {
        const bar = h("div.rx-probability", {}, h("i"), hurt ? h("b") : null);
        bar.firstChild.style.width = `${100 * now[i]}%`;
        if (hurt) bar.lastChild.style.width = `${100 * whole[i]}%`;
        return h(
          `tr${i === label ? ".rx-true" : ""}`,
          { "data-probability": now[i] },
          h("th", { scope: "row" }, i === label ? `★ ${name}` : name),
          h("td", {}, bar),
          h("td.rx-number", {}, percent(now[i])),
        );
      });
      const table = h(
        "table",
        { "aria-label": `answer of ${net.title}` },
        h("caption", {}, net.title),
        h("tbody", {}, ...rows),
      );
      table.style.setProperty("--rx-net", this.colourOf(net));
      return table;
    });
    const words = caption + (hurt ? "; the mark: without the lesion" : "");
    this.answers.replaceChildren(
      h("p.rx-words", {}, words),
      h("div.rx-tables", {}, ...tables),
    );
  }

  drawAccuracy(right, seen) {
    const words = Object.entries(right).map(
      ([title, count]) => `${title} ${(100 * count / seen).toFixed(1)} %`,
    );
    const { judged } = this.about;
    const more = seen < judged ? `, going on to ${thousands(judged)}` : "";
    this.accuracy.textContent =
      `right of ${thousands(seen)} test images: ${words.join(", ")}${more}`;
    this.accuracy.dataset.seen = seen;
    for (const [title, count] of Object.entries(right))
      this.accuracy.dataset[title.replace(/\W/g, "")] = count;
  }

  verdict(net, scales, probabilities, shown) {
    const guess = best(probabilities);
    const blocks = net.blocks.length;
    const left = net.blocks.filter((block) => scales[block.name] !== 0).length;
    const paths = net.blocks[0].residual
      ? `2${superscript(left)} = ${thousands(2 ** left)} path${left ? "s" : ""}`
      : left < blocks ? `${left} of ${blocks} blocks` : "1 path";
    const dated = shown !== null && shown >= 0 && net.kept.length;
    const when = dated ? `, iteration ${thousands(shown)}` : "";
    const answer = Number.isNaN(probabilities[guess])
      ? "no answer: its numbers are no longer finite"
      : `${this.about.classes[guess]} ${percent(probabilities[guess])}`;
    return `${answer} · ${paths}${when}`;
  }

  drawMaps() {
    const scales = this.lesion;
    for (const { net, nodes } of this.maps) {
      const { steps } = this.looks[net.title];
      for (const [name, node] of Object.entries(nodes)) {
        const { out } = steps[name];
        const channel = best(strengths(out));
        const limit = largest(channelOf(out, channel)) || 1;
        paint(node.canvas, out, channel, limit, this.colours);
        const scale = scales[name] ?? 1;
        const state = scale === 1 ? "" : scale === 0 ? ", off" : `, F(x) times ${number(scale, 2)}`;
        node.button.setAttribute("aria-label", `${node.label}, ${net.title}${state}`);
        node.toggle?.setAttribute("aria-checked", String(scale !== 0));
        node.cell?.style.setProperty("--rx-scale", Math.max(0.15, scale));
        node.cell?.classList.toggle("rx-off", scale === 0);
      }
    }
    this.markBlock();
  }

  markBlock() {
    for (const { net, nodes } of this.maps)
      for (const [name, node] of Object.entries(nodes)) {
        const chosen = net === this.net && name === this.block.name;
        node.button.setAttribute("aria-pressed", String(chosen));
      }
  }

  drawBlock() {
    const { net, block, steps, channel } = this;
    const scale = this.lesion[block.name] ?? 1;
    const [channels, height, width] = steps.out.shape;
    this.blockTitle.textContent =
      `${net.title}, ${block.name}: ${channels} channels of ${height} × ${width}; ` +
      `channel ${channel}`;
    this.blockWords.textContent = this.aboutBlock(block, steps, scale);
    this.sliderRow.hidden = Boolean(block.stem);
    this.drawSlider();
    const shown = block.stem ? ["f", "out"] : block.residual ? STEPS : ["x", "f", "out"];
    const sizes = shown.map((step) => largest(channelOf(steps[step], channel)));
    const limit = Math.max(...sizes) || 1;
    const colour = block.stem ? COLOURS.neutral : this.colourOf(net);
    const times = scale === 1 ? "" : `${scale.toFixed(2)}·`;
    const f = block.stem ? "BN" : "F(x)"; // the stem has no branch
    this.tilesTitle.textContent = `all channels of ${f}, strongest first`;
    const out = block.residual || scale === 1 ? "after ReLU" : "output"; // a mixture
    const titles = { x: "x", f, sum: `${times}F(x) + x`, out };
    for (const step of STEPS) {
      const panel = this.panels[step];
      panel.root.hidden = !shown.includes(step);
      if (panel.root.hidden) continue;
      panel.title.textContent = titles[step];
      paint(panel.canvas, steps[step], channel, limit, this.colours);
      panel.canvas.setAttribute(
        "aria-label",
        `${titles[step]}, channel ${channel} of ${block.name}; arrow keys move the crosshair`,
      );
      this.drawHistogram(panel.histogram, steps[step], titles[step], colour);
    }
    this.drawBar(limit);
    this.drawTiles(channel);
  }

  /** Where it was put: the answer to that may still be on its way. */
  drawSlider() {
    const scales = this.state.get("scales");
    const scale = scales[this.block.name] ?? 1;
    this.slider.value = scale;
    this.slider.setAttribute("aria-valuetext", `F(x) times ${number(scale, 2)}`);
    this.sliderValue.textContent = scale.toFixed(2);
    this.wholeButton.disabled = !Object.keys(scales).length;
  }

  aboutBlock({ stem, residual, identity }, { x, f }, scale) {
    if (stem)
      return "The stem: a 3×3 convolution and BN read the picture; a ReLU clips them.";
    if (!residual && scale !== 1) return MIXED;
    if (!residual) {
      const made = identity ? "its input" : "what a shortcut would make of its input";
      return `A plain block adds nothing: its output is F(x) after the ReLU. x is ${made}.`;
    }
    const around = identity ? "" : "; x is what the shortcut makes of the input";
    const ratio = (norm(f) / norm(x)).toFixed(2);
    return `‖F(x)‖ / ‖x‖ = ${ratio}${around}. Blue is negative, red is positive.`;
  }

  drawBar(limit) {
    const canvas = h("canvas.rx-map");
    const ramp = Float32Array.from({ length: 64 }, (_, i) => limit * (1 - i / 31.5));
    paint(canvas, { data: ramp, shape: [1, 64, 1] }, 0, limit, this.colours);
    const mark = (value) => h("span", {}, number(value, 2));
    this.colourBar.replaceChildren(canvas, h("div", {}, mark(limit), mark(0), mark(-limit)));
  }

  /** Counts of all values of a step, over all channels, on a logarithmic axis. */
  drawHistogram(element, tensor, title, colour) {
    const limit = largest(tensor) || 1;
    const bins = new Array(41).fill(0);
    for (const value of tensor.data)
      if (Number.isFinite(value / limit)) bins[Math.round(20 + (20 * value) / limit)]++;
    const top = Math.log1p((100 * Math.max(...bins)) / tensor.data.length) || 1;
    const bars = bins.map((count, i) => {
      const height = (29 * Math.log1p((100 * count) / tensor.data.length)) / top;
      const x = (100 * i) / 41;
      return svg("rect", { x, y: 30 - height, width: 2.3, height, fill: colour });
    });
    const below = tensor.data.reduce((n, v) => n + (v < 0), 0) / tensor.data.length;
    const words =
      `histogram of ${title} over all channels, from ${number(-limit, 2)} to ` +
      `${number(limit, 2)}: ${percent(below)} below zero`;
    element.setAttribute("aria-label", words);
    const middle = svg("line", { x1: 50, x2: 50, y1: 0, y2: 30, class: "rx-axis" });
    const label = svg("title", {}, words);
    element.replaceChildren(label, ...bars, middle);
  }

  drawTiles(channel) {
    const { f } = this.steps;
    const { looks } = this.root.dataset;
    const key = [looks, this.net.title, this.block.name, this.root.className].join("/");
    if (this.tiles.dataset.key !== key) {
      this.tiles.dataset.key = key;
      const strength = strengths(f);
      const order = [...strength.keys()].sort((a, b) => strength[b] - strength[a]);
      const limit = largest(f) * 0.7 || 1;
      this.tileButtons = order.map((one) => this.buildTile(f, one, strength[one], limit));
      this.roving(this.tileButtons);
      this.tiles.replaceChildren(...this.tileButtons);
    }
    for (const button of this.tileButtons) {
      const chosen = Number(button.dataset.channel) === channel;
      button.setAttribute("aria-pressed", String(chosen));
    }
  }

  buildTile(tensor, channel, strength, limit) {
    const canvas = h("canvas.rx-map");
    paint(canvas, tensor, channel, limit, this.colours);
    return h(
      "button.rx-tile",
      {
        type: "button",
        "data-channel": channel,
        "aria-label": `channel ${channel}, mean size ${strength.toFixed(2)}`,
        title: `channel ${channel}`,
        onclick: () => this.set({ channel }),
      },
      canvas,
    );
  }

  /** Crosshair, values and receptive field: of the pointer, or of the pinned pixel. */
  drawPixel() {
    if (!this.steps) return;
    const { steps, channel } = this;
    const [, height, width] = steps.out.shape;
    let pixel = this.hover ?? this.pixel; // the pointer may rest where a map was larger
    if (pixel) pixel = [clamp(pixel[0], 0, height - 1), clamp(pixel[1], 0, width - 1)];
    for (const step of STEPS) {
      const { cross, value } = this.panels[step];
      const tensor = steps[step];
      cross.hidden = !pixel;
      if (pixel) {
        const [row, column] = pixel;
        const [, rows, columns] = tensor.shape;
        cross.style.left = `${(100 * column) / columns}%`;
        cross.style.top = `${(100 * row) / rows}%`;
        cross.style.width = `${100 / columns}%`;
        cross.style.height = `${100 / rows}%`;
        const exact = at(tensor, channel, row, column);
        value.textContent = number(exact);
        value.dataset.value = exact;
      } else {
        value.textContent = " ";
        delete value.dataset.value;
      }
    }
    this.field.hidden = !pixel;
    if (!pixel) return;
    const [top, bottom, left, right] = this.seen(this.hover ? this.over : "out", pixel);
    const part = (places) => `${(100 * places) / SIZE}%`;
    Object.assign(this.field.style, {
      left: part(left),
      top: part(top),
      width: part(right - left + 1),
      height: part(bottom - top + 1),
    });
    this.field.dataset.size = `${bottom - top + 1} × ${right - left + 1}`;
  }

  seen(step, pixel) {
    return receptiveField(this.net, this.lesion, this.block.name, step, ...pixel);
  }

  /** The arithmetic behind the pinned pixel. */
  async drawWindows() {
    const { pixel, block, channel } = this;
    if (!pixel) {
      this.windows.replaceChildren(h("p.rx-hint", {}, POINT_AT_A_MAP));
      return;
    }
    const place = () =>
      JSON.stringify([this.asked, this.net.title, this.block.name, this.channel, this.pixel]);
    const here = place();
    let kernel;
    try {
      kernel = await this.kernel();
    } catch (error) {
      return this.tell(error.message);
    }
    if (this.gone || place() !== here) return; // another one is being drawn
    if (kernel.key !== this.have.keys[this.net.title]) {
      setTimeout(() => this.refresh(), 500); // trained since the maps were drawn
      return;
    }
    const found = workOut(kernel, ...pixel);
    const order = [...found.channels].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
    const rest = order.slice(3).reduce((sum, one) => sum + one.sum, 0);
    const more = `and ${order.length - 3} more channels, together ${number(rest)}`;
    const lines = [order.length > 3 ? more : "", ...this.arithmetic(pixel, kernel, found)];
    this.windows.replaceChildren(
      h("h4", {}, "how this number came about"),
      h("div.rx-products", {}, ...this.products(order.slice(0, 3))),
      ...lines.map((line) => h("p.rx-words", {}, line)),
    );
    Object.assign(this.windows.dataset, {
      total: found.total,
      value: found.value,
      pixel: pixel.join(),
      channel,
      block: block.name,
    });
  }

  /** Window × weights = sum, for some of the channels that were read. */
  products(channels) {
    const limitOf = (what) =>
      Math.max(...channels.flatMap((one) => one[what].map(Math.abs)), 1e-9);
    const [windowLimit, kernelLimit] = [limitOf("window"), limitOf("kernel")];
    const what = this.block.stem ? "picture channel" : "inner channel";
    return channels.map((one) =>
      h(
        "div.rx-product",
        {},
        h("span.rx-name", {}, `${what} ${one.channel}`),
        this.grid(one.window, windowLimit, "window"),
        "×",
        this.grid(one.kernel, kernelLimit, "weights"),
        h("span", {}, `sum ${number(one.sum)}`),
      ),
    );
  }

  /** From the sum of all windows to the pixel's value, in sentences. */
  arithmetic([row, column], { scale, shift }, { total, value }) {
    const { block, channel, steps, lesion } = this;
    const [top, bottom, left, right] = this.seen("out", [row, column]);
    const [x, f, sum, out] = STEPS.map((step) => at(steps[step], channel, row, column));
    const plus = (v) => `${v < 0 ? "−" : "+"} ${number(Math.abs(v))}`;
    const lines = [
      `Pixel (${row}, ${column}), channel ${channel}. ` +
        `The output there sees ${bottom - top + 1} × ${right - left + 1} pixels of the picture.`,
      `All windows: ${number(total)}. BN: ${number(scale)} × ${number(total)} ` +
        `${plus(shift)} = ${number(value)}${block.stem ? "" : " = F(x)"}.`,
    ];
    const factor = lesion[block.name] ?? 1;
    if (!block.residual && factor !== 1) {
      const rest = number(1 - factor, 2);
      lines.push(
        `The mixture: ${number(factor, 2)} × relu(${number(f)}) + ${rest} × ${number(x)} = ${number(out)}.`,
      );
      return lines;
    }
    if (block.residual) {
      const branch = factor === 1 ? number(f) : `${number(factor, 2)} × ${number(f)}`;
      lines.push(`The addition: ${branch} ${plus(x)} = ${number(sum)}.`);
    }
    const clipped = sum < 0 && out === 0;
    lines.push(clipped ? "The ReLU clips it to 0." : `After the ReLU: ${number(out)}.`);
    return lines;
  }

  grid(values, limit, label) {
    const words = `${label}: ${values.map((v) => number(v, 2)).join(", ")}`;
    const cells = values.map((value) => {
      const index = 4 * clamp(Math.round(127.5 + (127.5 * value) / limit), 0, 255);
      const [r, g, b] = this.colours.subarray(index, index + 3);
      const cell = h("span", {}, number(value, 2));
      cell.style.background = `rgb(${r},${g},${b})`;
      cell.style.color = luminance(r, g, b) > 0.179 ? "#000" : "#fff"; // above 4.5:1
      return cell;
    });
    return h("span.rx-grid", { role: "img", "aria-label": words }, ...cells);
  }

  /** Where it was put: the answer to that may still be on its way. */
  drawTimeSlider() {
    const { slider } = this.time;
    slider.value = this.state.get("iteration");
    slider.setAttribute("aria-valuetext", `iteration ${this.state.get("iteration")}`);
  }

  drawTime() {
    if (!this.time) return;
    const { net, plot, words } = this.time;
    const { iteration } = this.asked;
    this.drawTimeSlider();
    const right = this.root.classList.contains("rx-narrow") ? 330 : 630;
    plot.setAttribute("viewBox", `0 0 ${right + 10} 130`);
    const x = (i) => 40 + ((right - 40) * i) / net.iterations;
    const curves = [net.curves.train_error, net.curves.test_error];
    const top = Math.min(100, Math.max(...curves.flat().map(([, error]) => error)));
    const y = (error) => 105 - (95 * error) / top;
    const line = (points, style) =>
      svg("polyline", {
        points: points.map(([i, error]) => `${x(i)},${y(error)}`).join(" "),
        class: style,
      });
    const text = (across, down, words, anchor = "middle") =>
      svg("text", { x: across, y: down, "text-anchor": anchor }, words);
    const marks = net.kept.map((kept) =>
      svg("path", { d: `M${x(kept)} 107 l4 7 h-8 z`, class: "rx-kept" }),
    );
    plot.replaceChildren(
      svg("line", { x1: 40, x2: right, y1: 105, y2: 105, class: "rx-axis" }),
      line(curves[0], "rx-train"),
      line(curves[1], "rx-test"),
      svg("line", { x1: x(iteration), x2: x(iteration), y1: 5, y2: 105, class: "rx-now" }),
      ...marks,
      text(36, y(top) + 4, `${top.toFixed(0)} %`, "end"),
      text(36, 108, "0", "end"),
      text(right, 126, thousands(net.iterations), "end"),
      text(right / 2 + 5, 126, "iteration; triangles: weights were kept"),
      text(right - 4, 16, "training error (line), test error (dashed)", "end"),
    );
    const { shown } = this.looks[net.title];
    const kept = net.kept.includes(iteration);
    const lines = [`Iteration ${thousands(iteration)}.`];
    if (shown === null)
      lines.push("No weights were kept so early: the final network is shown.");
    else if (!kept)
      lines.push(`No weights of this iteration: shown are those of ${thousands(shown)}.`);
    if (shown === 0) lines.push(UNTRAINED);
    words.textContent = lines.join(" ");
    plot.setAttribute("aria-label", `error of ${net.run} by iteration, at ${iteration}`);
  }
}

const superscript = (n) => [...String(n)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");

function channelOf(tensor, channel) {
  const area = tensor.shape[1] * tensor.shape[2];
  return { data: tensor.data.subarray(channel * area, (channel + 1) * area) };
}

/** The way past a node: a line, and over a residual block the shortcut's arc and its +. */
function wire(residual, strided = false) {
  const parts = [svg("path", { d: "M0 30 H64", class: "rx-line" })];
  if (residual) {
    const kind = strided ? "rx-arc rx-strided" : "rx-arc";
    parts.push(svg("path", { d: "M4 30 C4 2 56 2 56 30", class: kind }));
    parts.push(svg("circle", { cx: 56, cy: 30, r: 5.5, class: "rx-plus" }));
    parts.push(svg("path", { d: "M53 30 h6 M56 27 v6", class: "rx-line" }));
  }
  return svg("svg", { viewBox: "0 0 64 37", class: "rx-wire", "aria-hidden": "true" }, ...parts);
}

/** A pad to draw on, by pointer or with arrow keys and the space bar. */
function buildPad(root, done) {
  const canvas = h("canvas", {
    width: 128,
    height: 128,
    tabindex: 0,
    role: "application",
    "aria-label": "drawing pad; arrow keys move the pen, the space bar puts it down or lifts it",
  });
  const context = canvas.getContext("2d");
  const colour = h("input", { type: "color", value: "#20508c", "aria-label": "colour" });
  const clear = () => {
    context.fillStyle = "#cfe3f2";
    context.fillRect(0, 0, 128, 128);
  };
  let pen = null;
  let down = false;
  const to = (x, y) => {
    if (pen && down) {
      Object.assign(context, { strokeStyle: colour.value, lineWidth: 9, lineCap: "round" });
      context.beginPath();
      context.moveTo(...pen);
      context.lineTo(x, y);
      context.stroke();
    }
    pen = [x, y];
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    return [(x * 128) / box.width, (y * 128) / box.width];
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen = place(event);
    down = true;
    to(...pen);
  };
  canvas.onpointermove = (event) => event.buttons && to(...place(event));
  canvas.onpointerup = () => {
    down = false;
    done(shrink(canvas));
  };
  canvas.addEventListener("rx-key", (event) => {
    const move = {
      ArrowUp: [0, -4],
      ArrowDown: [0, 4],
      ArrowLeft: [-4, 0],
      ArrowRight: [4, 0],
    }[event.key];
    if (event.key === " ") down = !down;
    else if (!move) return;
    event.preventDefault();
    pen ??= [64, 64];
    if (move) to(clamp(pen[0] + move[0], 0, 127), clamp(pen[1] + move[1], 0, 127));
    done(shrink(canvas));
  });
  clear();
  const onclick = () => {
    clear();
    done(shrink(canvas));
  };
  const empty = h("button.rx-button", { type: "button", onclick }, "clear");
  root.append(canvas, h("div", {}, colour, empty));
}

// --- backends ---------------------------------------------------------------------------

const WAIT = 8000; // milliseconds for an answer from the kernel
const FIRST = 3000; // for the first one: mostly a notebook reopened, and nobody there
const SILENT =
  "The kernel does not answer. Run this cell to use the explorer; " +
  "if another cell is running, it goes on after that.";

/** PyTorch in the kernel behind an anywidget model, which is asked over its line. */
export function kernelBackend(model, line) {
  const names = ["net", "block", "channel", "pixel", "scales", "picture", "iteration"];
  const backend = {
    silent: () => {},
    state: {
      get: (name) => model.get(name),
      set(values) {
        for (const [name, value] of Object.entries(values)) model.set(name, value);
        model.save_changes();
        line.ping();
      },
      watch(tell) {
        const handlers = names.map((name) => [`change:${name}`, () => tell(name)]);
        const again = (content) => content.kind === "again" && tell("picture");
        for (const [event, handler] of handlers) model.on(event, handler);
        model.on("msg:custom", again);
        return () => {
          for (const [event, handler] of handlers) model.off(event, handler);
          model.off("msg:custom", again);
        };
      },
    },
    async about() {
      const { about, buffers } = await line.ask("about");
      return { about, thumbnails: new Uint8Array(buffers[0]) };
    },
    async look(question, early) {
      const { nets, label, buffers } = await line.ask("look", question, { early });
      return {
        pixels: new Uint8Array(buffers[0]),
        label,
        nets: nets.map((net, i) => ({
          ...net,
          parts: cut(net.parts, new Float32Array(buffers[i + 1])),
        })),
      };
    },
    async kernel(question) {
      const { key, scale, shift, shape, buffers } = await line.ask("kernel", question);
      const [weights, data] = buffers.map((buffer) => new Float32Array(buffer));
      return { key, scale, shift, weights, maps: { data, shape } };
    },
    judge: (question) => line.ask("judge", question),
    own: (pixels) => line.ask("own", {}, { buffers: [pixels.buffer] }),
    stop: () => line.backends.delete(backend),
  };
  line.backends.add(backend);
  return backend;
}

/**
 * Questions to the kernel. All views of one model share a line, so that what two of them
 * ask is computed and sent once.
 */
class Line {
  constructor(model) {
    this.model = model;
    this.backends = new Set(); // one of each view
    this.questions = new Map(); // without an answer; counts of right answers stay longer
    this.name = Math.random().toString(36).slice(2); // other browsers hear the answers too
    this.count = 0;
    this.heard = 0; // when the kernel answered last
    model.on("msg:custom", (content, buffers) => this.answered(content, buffers));
  }

  /** Find out, once in a while, whether the kernel still lives. */
  ping() {
    if (Date.now() - this.heard > 15000) this.ask("ping").catch(() => {});
  }

  /** `early` is told the first part of an answer that comes in two. */
  ask(kind, body = {}, { buffers = [], early = null } = {}) {
    const key = buffers.length ? Symbol(kind) : JSON.stringify([kind, body]);
    let question = this.questions.get(key);
    if (!question) {
      if (kind === "look") this.forgetCounts();
      question = this.send(kind, body, buffers);
      this.questions.set(key, question);
    }
    if (early && question.first) early(question.first);
    else if (early) question.early.push(early);
    return question.answer;
  }

  send(kind, body, buffers) {
    const id = `${this.name}-${this.count++}`;
    const question = { id, kind, early: [], first: null, done: false };
    question.answer = new Promise((resolve, reject) => {
      Object.assign(question, { resolve, reject });
    });
    const missed = () => this.silent(SILENT);
    question.timer = setTimeout(missed, this.heard ? WAIT : FIRST);
    try {
      this.model.send({ kind, ...body, id }, undefined, buffers);
    } catch {
      clearTimeout(question.timer);
      missed();
    }
    return question;
  }

  answered(content, buffers) {
    const found = [...this.questions].find(([, question]) => question.id === content.id);
    if (!found) return;
    const [key, question] = found;
    this.heard = Date.now();
    clearTimeout(question.timer);
    this.silent(null);
    if (content.early) {
      question.first = content;
      for (const early of question.early) early(content);
      return;
    }
    question.done = true;
    // Another view asks for the same counts a moment later.
    if (question.kind !== "judge") this.questions.delete(key);
    if (content.error) return question.reject(new Error(content.error));
    // Copies: the kernel's views need not begin at a multiple of four bytes.
    const copies = (buffers ?? []).map((view) =>
      view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength),
    );
    question.resolve({ ...content, buffers: copies });
  }

  /** They were of another lesion, or of weights that were trained since. */
  forgetCounts() {
    for (const [key, { done }] of this.questions) if (done) this.questions.delete(key);
  }

  silent(words) {
    for (const backend of this.backends) backend.silent(words);
  }
}

/** One long array as tensors by name: parts are [name, shape]. */
function cut(parts, numbers) {
  let start = 0;
  return Object.fromEntries(
    parts.map(([name, shape]) => {
      const length = shape.reduce((a, b) => a * b);
      const data = numbers.subarray(start, start + length);
      start += length;
      return [name, { data, shape }];
    }),
  );
}

/** Draw an explorer into an element; returns what takes it away again. */
export function mount(element, backend) {
  const root = h("div.rx");
  // Jupyter takes arrow keys away from what is inside a cell before it sees them. So keys
  // are caught at the window, and come to the explorer's own elements as "rx-key".
  const keys = (event) => {
    if (!root.contains(event.target)) return;
    const { key, ctrlKey, metaKey, altKey, shiftKey } = event;
    if (ctrlKey || metaKey || altKey || (shiftKey && key === "Enter")) return; // Jupyter's
    event.stopPropagation();
    const copy = new Event("rx-key", { cancelable: true });
    copy.key = key;
    if (!event.target.dispatchEvent(copy)) event.preventDefault();
  };
  window.addEventListener("keydown", keys, true);
  element.append(root);
  const view = new View(root, backend);
  view.start().catch((error) => view.tell(error.message));
  root.view = view;
  return () => {
    window.removeEventListener("keydown", keys, true);
    view.stop();
    backend.stop?.();
    root.remove();
  };
}

/** What anywidget calls: this function once for a model, `render` for each of its views. */
export default () => {
  let line;
  return {
    initialize({ model }) {
      line = new Line(model);
    },
    render({ model, el }) {
      return mount(el, kernelBackend(model, line));
    },
  };
};
