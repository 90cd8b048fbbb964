// The explorer in a page without a kernel: the same view, fed by onnxruntime-web from
// files that lie beside this one. See `explorer.js` for what a backend has to answer.
import { mount } from "./explorer.js";

const PIXELS = 3 * 32 * 32;
const BATCH = 20; // pictures judged in one go
const near = (name) => new URL(name, import.meta.url);

async function read(name) {
  const answer = await fetch(near(name));
  if (!answer.ok) throw new Error(`${name} could not be read. Reload the page.`);
  return answer;
}

const bytes = async (name) => new Uint8Array(await (await read(name)).arrayBuffer());

/** The engine, on one thread: pages need special headers for more. */
async function startEngine() {
  const ort = await import("./ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: near("ort-wasm-simd-threaded.wasm").href };
  ort.env.logLevel = "error";
  return ort;
}

/** One network: its session, and its weights for whoever wants to see them. */
async function openNet(ort, about) {
  const [graph, weights] = await Promise.all([
    bytes(`${about.file}.onnx`),
    bytes(`${about.file}.bin`),
  ]);
  const session = await ort.InferenceSession.create(graph, {
    executionProviders: ["wasm"],
    // "all" breaks residual branches that are read as outputs.
    graphOptimizationLevel: "extended",
    externalData: [{ path: `${about.file}.bin`, data: weights }],
  });
  return { about, session, weights };
}

/** Numbers of 16 bits from the file, as 32 bits. */
function halves(net, name) {
  const [place, shape] = net.about.places[name];
  const length = shape.reduce((a, b) => a * b, 1);
  const view = new DataView(net.weights.buffer, net.weights.byteOffset + place);
  return Float32Array.from({ length }, (_, i) => half(view.getUint16(2 * i, true)));
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

export async function pageBackend() {
  const [about, pictures] = await Promise.all([
    read("about.json").then((answer) => answer.json()),
    bytes("pictures.bin"),
  ]);
  const picturesOf = (from, count) => pictures.subarray(PIXELS * from, PIXELS * (from + count));
  const state = makeState({
    net: about.nets[0].title,
    block: about.nets[0].blocks[4]?.name ?? "stem",
    channel: -1,
    pixel: [],
    scales: {},
    picture: about.pictures[0].index,
    iteration: -1,
  });
  let own = new Uint8Array(PIXELS);
  const last = {}; // by network: the inner tensors of the last look
  const wholes = {}; // and the logits without a lesion
  let queue = Promise.resolve(); // the engine does one thing at a time

  const ready = startEngine().then(async (ort) => {
    const nets = await Promise.all(about.nets.map((net) => openNet(ort, net)));
    return { ort, nets };
  });

  /** uint8 pictures (N, 3, 32, 32), normalised as in the training. */
  function normalised(pixels) {
    return Float32Array.from(pixels, (value, i) => {
      const channel = Math.floor(i / 1024) % 3;
      return (value - about.mean[channel]) / about.std[channel];
    });
  }

  function run(net, pixels, scales, names) {
    const work = async () => {
      const { ort } = await ready;
      const x = normalised(pixels);
      const factors = net.about.blocks.map((block) => scales[block.name] ?? 1);
      const feeds = {
        picture: new ort.Tensor("float32", x, [x.length / PIXELS, 3, 32, 32]),
        scales: new ort.Tensor("float32", Float32Array.from(factors), [factors.length]),
      };
      return net.session.run(feeds, names);
    };
    queue = queue.then(work, work);
    return queue;
  }

  return {
    state,
    silent: () => {},
    async about() {
      return { about, thumbnails: picturesOf(0, about.pictures.length) };
    },
    async look({ scales, picture }) {
      const { nets } = await ready;
      const shown = about.pictures.find((one) => one.index === picture);
      const pixels = shown ? picturesOf(shown.place, 1) : own;
      const answers = [];
      for (const net of nets) {
        const found = await run(net, pixels, scales, net.about.outputs);
        const parts = { input: { data: normalised(pixels), shape: [3, 32, 32] } };
        for (const [name, tensor] of Object.entries(found))
          if (name !== "logits") parts[name] = { data: tensor.data, shape: tensor.dims.slice(1) };
        last[net.about.title] = parts;
        const logits = Array.from(found.logits.data);
        const key = `${picture}/${pixels.join()}`;
        const { title } = net.about;
        if (wholes[title]?.key !== key) {
          const hurt = Object.keys(scales).length > 0;
          const whole = hurt ? await run(net, pixels, {}, ["logits"]) : found;
          wholes[title] = { key, logits: Array.from(whole.logits.data) };
        }
        answers.push({ title, shown: -1, logits, whole: wholes[title].logits, parts });
      }
      return { pixels, label: shown?.label ?? null, nets: answers };
    },
    async kernel({ net: title, block, channel }) {
      const { nets } = await ready;
      const net = nets.find((one) => one.about.title === title);
      const [conv, bn] = block === "stem" ? ["conv1", "bn1"] : [`${block}.conv2`, `${block}.bn2`];
      const maps = last[title][block === "stem" ? "input" : `${block}.h`];
      const each = 9 * maps.shape[0];
      const weights = halves(net, `${conv}.weight`).subarray(each * channel, each * (channel + 1));
      const part = (name) => halves(net, `${bn}.${name}`)[channel];
      const scale = part("weight") / Math.sqrt(part("running_var") + about.eps);
      return { scale, shift: part("bias") - scale * part("running_mean"), weights, maps };
    },
    async judge({ scales, start }) {
      const { nets } = await ready;
      const right = {};
      const count = Math.min(BATCH, about.judged - start);
      const pixels = picturesOf(about.pictures.length + start, count);
      for (const net of nets) {
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
      own = pixels;
    },
  };
}

export async function open(element) {
  const backend = await pageBackend();
  return mount(element, backend);
}
