"use strict";
// What the reader has set, how an address keeps it, and what planning.js needs to know of it.
//
// speeds: % of full speed, one per rank. run: name of the measured run whose costs count, or "".
// DATA comes with the page: { shapes, runs } as shapes.py and runs.py describe them.

const SPLITS = { even: "even", lut: "by speed", balanced: "balanced" };
const CHOICES = {
  layout: Object.keys(LAYOUTS),
  split: Object.keys(SPLITS),
  mask: ["causal", "full"],
  hops: ["forward", "copy"],
};
const MOST_RANKS = 8;
const SHAPE_FIELDS = [
  "layers",
  "batch",
  "emb_dim",
  "num_heads",
  "num_kv_heads",
  "head_dim",
  "ffn_dim",
  "itemsize",
];
const NUMBERS = {
  seqLen: { low: 1, high: 1048576, whole: true },
  gbps: { low: 0.1, high: 10000 },
  hopMs: { low: 0.001, high: 100 },
  fixedMs: { low: 0.001, high: 100 },
  tflops: { low: 0.01, high: 5000 },
  tile: { low: 1, high: 4096, whole: true },
};
const DEFAULTS = {
  run: "",
  speeds: [100, 100, 50, 25],
  seqLen: 32768,
  layout: "zigzag",
  split: "balanced",
  mask: "causal",
  hops: "forward",
  gbps: 300,
  hopMs: 0.03,
  fixedMs: 0.15,
  tflops: 600,
  tile: 128,
};

function runOf(state) {
  return DATA.runs.find((run) => run.name === state.run);
}

// Without projections emb_dim is 0, without a feed-forward part ffn_dim.
function isShape(name, value) {
  const least = name === "emb_dim" || name === "ffn_dim" ? 0 : 1;
  return Number.isInteger(value) && value >= least && value < 1e6;
}

// The state that a measured run was in. Its costs count until another shape, full speed, fixed cost or number
// of ranks is set.
function withRun(state, name) {
  const run = DATA.runs.find((one) => one.name === name);
  if (!run) return { ...state, run: "" };
  const given = Object.entries(run.settings).filter(([, value]) => value !== null);
  return { ...state, ...structuredClone(Object.fromEntries(given)), run: name };
}

function withRanks(state, count) {
  const speeds = state.speeds.slice(0, count);
  while (speeds.length < count) speeds.push(speeds[speeds.length - 1]);
  return { ...state, speeds, run: speeds.length === state.speeds.length ? state.run : "" };
}

// What the page begins with: the first measured run, if there is one.
function firstState() {
  const state = { ...DEFAULTS, shape: { ...DATA.shapes[0] } };
  return DATA.runs.length ? withRun(state, DATA.runs[0].name) : state;
}

function matmulFlops({ batch, emb_dim, num_heads, num_kv_heads, head_dim, ffn_dim }) {
  const projections = emb_dim * (2 * num_heads + 2 * num_kv_heads) * head_dim;
  return { token: 2 * batch * (projections + 3 * emb_dim * ffn_dim), pair: 4 * batch * num_heads * head_dim };
}

// What work costs each rank: as measured in the run and scaled with the rank's speed, or FLOPs / speed.
function costsOf(state) {
  const run = runOf(state);
  return state.speeds.map((percent, rank) => {
    if (run && run.costs) {
      const cost = run.costs[rank];
      const slower = run.settings.speeds[rank] / percent;
      const names = ["token_ms", "pair_ms", "diagonal_ms", "hop_token_ms"];
      return { ...cost, ...Object.fromEntries(names.map((name) => [name, cost[name] * slower])) };
    }
    const flops = matmulFlops(state.shape);
    const flopsPerMs = ((state.tflops * percent) / 100) * 1e9;
    const token_ms = flops.token / flopsPerMs;
    const pair_ms = flops.pair / flopsPerMs;
    return { fixed_ms: state.fixedMs, token_ms, pair_ms, diagonal_ms: 0, hop_ms: 0, hop_token_ms: 0 };
  });
}

// A hop passes on keys and values of one layer.
function hopOf({ shape, hopMs, gbps, hops }) {
  const tokenBytes = 2 * shape.batch * shape.num_kv_heads * shape.head_dim * shape.itemsize;
  return { latency_ms: hopMs, token_ms: tokenBytes / (gbps * 1e6), direct: hops === "copy" };
}

function settingOf(state) {
  const speeds = state.speeds.map((percent) => (percent / 100) * state.tflops);
  const { seqLen, tile, mask } = state;
  return { seqLen, tile, costs: costsOf(state), speeds, hop: hopOf(state), causal: mask === "causal" };
}

// ms that the run took as it is set now, or undefined: it was not run this way.
function measuredMs(state, split, layout) {
  const run = runOf(state);
  if (!run) return undefined;
  const same = ["seqLen", "gbps", "hopMs", "tile", "mask", "hops"].every(
    (name) => state[name] === (run.settings[name] ?? DEFAULTS[name]),
  );
  return same && run.settings.speeds.join() === state.speeds.join()
    ? run.measured[layout]?.[split]
    : undefined;
}

function hashOf(state) {
  const values = {
    ...state,
    speeds: state.speeds.join(),
    shape: SHAPE_FIELDS.map((name) => state.shape[name]).join(),
  };
  return new URLSearchParams(values).toString().replaceAll("%2C", ",");
}

// The state an address asks for; what it does not say, or says wrongly, is as in `state`.
function stateOf(hash, state) {
  const asked = new URLSearchParams(hash.replace(/^#/, ""));
  const numbers = (name) => (asked.get(name) || "").split(",").map(Number);
  let read = asked.has("run") ? withRun(state, asked.get("run")) : { ...state };
  const speeds = numbers("speeds");
  if (speeds.length <= MOST_RANKS && speeds.every((value) => value >= 1 && value <= 100)) {
    read = { ...withRanks(read, speeds.length), speeds };
  }
  for (const [name, options] of Object.entries(CHOICES)) {
    if (options.includes(asked.get(name))) read[name] = asked.get(name);
  }
  for (const [name, { low, high, whole }] of Object.entries(NUMBERS)) {
    const value = Number(asked.get(name));
    if (value >= low && value <= high && (!whole || Number.isInteger(value))) read[name] = value;
  }
  const shape = numbers("shape");
  if (
    shape.length === SHAPE_FIELDS.length &&
    shape.every((value, index) => isShape(SHAPE_FIELDS[index], value))
  ) {
    read.shape = Object.fromEntries(SHAPE_FIELDS.map((name, index) => [name, shape[index]]));
  }
  return read;
}
