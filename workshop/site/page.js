// The explorer in a page without a kernel: the same view, fed by onnxruntime-web from
// files that lie beside this one. See `explorer.js` for what a backend has to answer.
import { mount } from "./explorer.js";

const PIXELS = 3 * 32 * 32;
const BATCH = 20; // pictures judged in one go
const near = (name) => new URL(name, import.meta.url);

async function read(name) {
  const answer = await fetch(near(name)).catch(() => null); // offline, say
  if (!answer?.ok) throw new Error(`${name} could not be read. Reload the page.`);
  return answer;
}

/** A file that `page.py` packed. */
async function bytes(name) {
  const { body } = await read(name);
  const unpacked = new Response(body.pipeThrough(new DecompressionStream("gzip")));
  return new Uint8Array(await unpacked.arrayBuffer());
}

/** The engine, on one thread: pages need special headers for more. */
async function startEngine() {
  const [ort, binary] = await Promise.all([
    import("./ort.wasm.bundle.min.mjs"),
    bytes("engine.bin"),
  ]);
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return ort;
}

let engine = null; // one for all explorers of the page
let making = Promise.resolve(); // it reads one file of weights at a time

/** One network as it was at an iteration: its session, and its weights for the view. */
async function openNet(about, iteration) {
  engine ??= startEngine();
  const [graph, weights] = await Promise.all([
    bytes(about.graph),
    bytes(about.weights[iteration]),
  ]);
  const ort = await engine;
  const make = () =>
    ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      // "all" breaks residual branches that are read as outputs.
      graphOptimizationLevel: "extended",
      externalData: [{ path: "weights", data: weights }],
    });
  making = making.then(make, make);
  return { ort, about, session: await making, weights, shown: iteration };
}

/** A tensor from the file of weights: kernels have 16 bits, vectors 32. */
function numbers(net, name) {
  const [place, shape] = net.about.places[name];
  const length = shape.reduce((a, b) => a * b, 1);
  const view = new DataView(net.weights.buffer, net.weights.byteOffset + place);
  const one = shape.length > 1
    ? (_, i) => half(view.getUint16(2 * i, true))
    : (_, i) => view.getFloat32(4 * i, true);
  return Float32Array.from({ length }, one);
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** What is shown, kept in the page. */
function makeState(values) {
  const watchers = new Set();
  return {
    get: (name) => values[name],
    set(changes) {
      Object.assign(values, changes);
      for (const tell of watchers) for (const name of Object.keys(changes)) tell(name);
    },
    watch(tell) {
      watchers.add(tell);
      return () => watchers.delete(tell);
    },
  };
}

/** `name` is that of a file that `page.py` wrote: "pair" or "history". */
export async function pageBackend(name) {
  engine ??= startEngine(); // the longest of all, so it comes first
  const about = await (await read(`${name}.json`)).json();
  const open = new Map(); // networks, by title and iteration
  const netsAt = (iteration) => Promise.all(about.nets.map((net) => netAt(net, iteration)));
  const last = Math.max(...about.nets.flatMap((net) => net.kept), -1);
  const opening = netsAt(last);
  const pictures = await bytes(about.pixels);
  const picturesOf = (from, count) => pictures.subarray(PIXELS * from, PIXELS * (from + count));
  const state = makeState({
    net: about.nets[0].title,
    block: about.nets[0].blocks[4]?.name ?? "stem",
    channel: -1,
    pixel: [],
    scales: {},
    picture: about.pictures.find((one) => !one.mistake).index,
    iteration: last,
  });
  let own = new Uint8Array(PIXELS);
  const wholes = {}; // by network: the logits without a lesion
  let queue = opening; // the engine does one thing at a time

  /** The latest weights kept until then; -1 stands for the only ones. */
  function netAt(net, iteration) {
    const shown = net.kept.findLast((kept) => kept <= iteration) ?? -1;
    const key = `${net.title}/${shown}`;
    if (!open.has(key)) open.set(key, openNet(net, shown));
    return open.get(key);
  }

  /** uint8 pictures (N, 3, 32, 32), normalised as in the training. */
  function normalised(pixels) {
    return Float32Array.from(pixels, (value, i) => {
      const channel = Math.floor(i / 1024) % 3;
      return (value - about.mean[channel]) / about.std[channel];
    });
  }

  function run(net, pixels, scales, names) {
    const work = () => {
      const x = normalised(pixels);
      const factors = net.about.blocks.map((block) => scales[block.name] ?? 1);
      const { Tensor } = net.ort;
      const feeds = {
        picture: new Tensor("float32", x, [x.length / PIXELS, 3, 32, 32]),
        scales: new Tensor("float32", Float32Array.from(factors), [factors.length]),
      };
      return net.session.run(feeds, names);
    };
    queue = queue.then(work, work);
    return queue;
  }

  function pixelsOf(picture) {
    const shown = about.pictures.find((one) => one.index === picture);
    return { label: shown?.label ?? null, pixels: shown ? picturesOf(shown.place, 1) : own };
  }

  return {
    state,
    silent: () => {},
    async about() {
      return { about, thumbnails: picturesOf(0, about.pictures.length) };
    },
    async look({ scales, picture, iteration }, early = () => {}) {
      const { pixels, label } = pixelsOf(picture);
      const answers = [];
      for (const net of await netsAt(iteration)) {
        const { shown } = net;
        const { title, outputs } = net.about;
        const found = await run(net, pixels, scales, outputs);
        const parts = { input: { data: normalised(pixels), shape: [3, 32, 32] } };
        for (const [name, tensor] of Object.entries(found))
          if (name !== "logits") parts[name] = { data: tensor.data, shape: tensor.dims.slice(1) };
        const logits = Array.from(found.logits.data);
        const key = `${shown}/${pixels.join()}`;
        if (wholes[title]?.key !== key) {
          const hurt = Object.keys(scales).length > 0;
          const whole = hurt ? await run(net, pixels, {}, ["logits"]) : found;
          wholes[title] = { key, logits: Array.from(whole.logits.data) };
        }
        answers.push({ title, shown, logits, whole: wholes[title].logits, parts });
      }
      early({ label, nets: answers });
      await new Promise((done) => setTimeout(done)); // time to paint them
      return { pixels, label, nets: answers };
    },
    async kernel({ net: title, block, channel, scales, picture, iteration }) {
      const nets = await netsAt(iteration);
      const net = nets.find((one) => one.about.title === title);
      const [conv, bn] = block === "stem" ? ["conv1", "bn1"] : [`${block}.conv2`, `${block}.bn2`];
      const { pixels } = pixelsOf(picture);
      let maps = { data: normalised(pixels), shape: [3, 32, 32] };
      if (block !== "stem") {
        const read = `${block}.h`;
        const tensor = (await run(net, pixels, scales, [read]))[read];
        maps = { data: tensor.data, shape: tensor.dims.slice(1) };
      }
      const each = 9 * maps.shape[0];
      const weights = numbers(net, `${conv}.weight`).subarray(each * channel, each * (channel + 1));
      const part = (name) => numbers(net, `${bn}.${name}`)[channel];
      const scale = part("weight") / Math.sqrt(part("running_var") + about.eps);
      return { scale, shift: part("bias") - scale * part("running_mean"), weights, maps };
    },
    async judge({ scales, start, iteration }) {
      const right = {};
      const count = Math.min(BATCH, about.judged - start);
      const pixels = picturesOf(about.pictures.length + start, count);
      for (const net of await netsAt(iteration)) {
        const { logits } = await run(net, pixels, scales, ["logits"]);
        const classes = about.classes.length;
        right[net.about.title] = about.labels.slice(start, start + count).filter((label, i) => {
          const one = Array.from(logits.data.subarray(classes * i, classes * (i + 1)));
          return one.indexOf(Math.max(...one)) === label;
        }).length;
      }
      return { right, of: count };
    },
    async own(pixels) {
      own = pixels; // the view then sets `picture`
    },
  };
}

export async function open(element, name) {
  const backend = await pageBackend(name);
  element.replaceChildren(); // what was said while it loaded
  return mount(element, backend);
}
