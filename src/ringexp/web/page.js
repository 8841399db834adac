"use strict";
// The page: controls that change the state, and everything that is drawn from it.

const byId = (id) => document.getElementById(id);
const controls = document.forms[0].elements;
const views = {
  prompt: byId("prompt"),
  shares: byId("shares"),
  timeline: byId("timeline"),
  map: byId("map"),
  chart: byId("chart"),
};

// label, and how many steps its slider has over the range that is usual; a number typed in may lie outside.
const SLIDERS = {
  seqLen: {
    label: "Prompt, tokens",
    low: 1024,
    high: 1048576,
    steps: 40,
    round: (value) => Math.round(value / 128) * 128,
  },
  gbps: { label: "Link, GB/s each way", low: 1, high: 1000, steps: 60 },
  hopMs: { label: "Link, latency, ms", low: 0.001, high: 10, steps: 40 },
  fixedMs: { label: "Fixed cost per layer and rank, ms", low: 0.001, high: 10, steps: 40 },
  tflops: { label: "Full speed, TFLOP/s", low: 1, high: 2000, steps: 60 },
};
// Whoever sets one of these leaves a measured run's costs.
const COST_SETTINGS = ["fixedMs", "tflops", "shape"];

let state = stateOf(location.hash, firstState());
let charting = 0;
let saving = 0;

function set(change) {
  const leaves = COST_SETTINGS.some((name) => name in change);
  state = { ...state, ...change, ...(leaves ? { run: "" } : {}) };
  changed();
}

function changed() {
  show();
  clearTimeout(saving);
  saving = setTimeout(() => history.replaceState(null, "", `#${hashOf(state)}`), 250);
}

function made(name, properties = {}, children = []) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...[children].flat());
  return element;
}

const twoDigits = (value) => Number(value.toPrecision(2));

// A slider in equal ratios and a field for the exact number; gives the function that shows the state in them.
function sliderFor(name) {
  const { label, low, high, steps, round = twoDigits } = SLIDERS[name];
  const limits = NUMBERS[name];
  const at = (step) => round(low * (high / low) ** (step / steps));
  const slider = made("input", { type: "range", min: 0, max: steps, id: name });
  const field = made("input", {
    type: "number",
    min: limits.low,
    max: limits.high,
    step: limits.whole ? 1 : "any",
  });
  field.setAttribute("aria-label", `${label}, exact`);
  slider.addEventListener("input", () => set({ [name]: at(Number(slider.value)) }));
  field.addEventListener("change", () => {
    const value = Math.min(Math.max(Number(field.value) || limits.low, limits.low), limits.high);
    set({ [name]: limits.whole ? Math.round(value) : value });
  });
  byId(`${name}-box`).append(
    made("div", { className: "pair" }, [made("label", { htmlFor: name, textContent: label }), field]),
    slider,
  );
  return () => {
    slider.value = Math.round((steps * Math.log(state[name] / low)) / Math.log(high / low));
    slider.setAttribute("aria-valuetext", `${state[name]}`);
    field.value = Number(state[name].toPrecision(name === "seqLen" ? 7 : 4));
  };
}

function shapeFields() {
  const fields = SHAPE_FIELDS.map((name) => {
    const field = made("input", { type: "number", min: 0, step: 1 });
    field.addEventListener("change", () => {
      const value = Number(field.value);
      set({ shape: { ...state.shape, name: "", ...(isShape(name, value) ? { [name]: value } : {}) } });
    });
    byId("shape-box").append(made("label", {}, [SHAPE_WORDS[name], field]));
    return () => (field.value = state.shape[name]);
  });
  return () => fields.forEach((showField) => showField());
}

const SHAPE_WORDS = {
  layers: "layers",
  batch: "batch",
  emb_dim: "embedding (0: attention alone)",
  num_heads: "heads",
  num_kv_heads: "key/value heads",
  head_dim: "head dim",
  ffn_dim: "feed-forward (0: none)",
  itemsize: "bytes per number",
};

const LAYOUT_WORDS = {
  zigzag:
    "Each rank has a head piece and a mirrored tail piece, so its work is in proportion to its own tokens.",
  contiguous: "Each rank has one piece; later pieces see more keys, so they are more work per token.",
  full: "Every query sees every key, so a rank's work is in proportion to its tokens wherever they lie.",
};

const HOP_WORDS = {
  forward:
    "Neighbours pass shards on as soon as both are at it; every rank computes them in order of arrival.",
  copy: "Every rank copies the others' shards from their owners and computes them in order of arrival.",
};

// One slider per rank, replaced when their number changes.
function showRanks() {
  const box = byId("rank-sliders");
  if (box.children.length !== state.speeds.length) {
    box.replaceChildren(...state.speeds.map((_, rank) => rankSlider(rank)));
  }
  state.speeds.forEach((speed, rank) => {
    const [, , slider, output] = box.children[rank].children;
    slider.value = speed;
    slider.setAttribute("aria-valuetext", `${Math.round(speed)} %`);
    output.textContent = `${Number(speed.toPrecision(3))} %`;
  });
}

function rankSlider(rank) {
  const slider = made("input", { type: "range", min: 5, max: 100, step: 1, id: `speed-${rank}` });
  slider.addEventListener("input", () => set({ speeds: state.speeds.with(rank, Number(slider.value)) }));
  return made("div", { className: "rank" }, [
    chipOf(rank),
    made("label", { htmlFor: slider.id, textContent: `rank ${rank}` }),
    slider,
    made("output"),
  ]);
}

function card(name, value, detail) {
  return made("div", { className: "finding" }, [
    name,
    made("b", { textContent: value }),
    made("small", { textContent: detail }),
  ]);
}

function showNumbers(plan, setting) {
  const { layers } = state.shape;
  const latencyMs = layers * plan.latencyMs;
  const idealMs = layers * capacityIdealMs(setting);
  const fastest = best(setting.speeds);
  const singleMs = layers * aloneMs(setting.costs[fastest], setting.seqLen, setting.causal);
  const times = (other) => `${(other / latencyMs).toFixed(2)}x`;
  const even = attempt("even", state.layout, setting);
  const evenMs = even && layers * even.latencyMs;
  const what =
    layers > 1 ? `${layers} layers of ${ms(plan.latencyMs)}` : "one layer; the slowest rank's time";
  const efficiency = percent(idealMs / latencyMs, 1);
  const cards = [
    card("Predicted latency", ms(latencyMs), what),
    card("Capacity efficiency", efficiency, `the ranks' summed speed would allow ${ms(idealMs)}`),
    even
      ? card("Over the even split", times(evenMs), `${state.layout}, even: ${ms(evenMs)}`)
      : card("Over the even split", "-", "too few tokens for one"),
    card(`Over rank ${fastest} alone`, times(singleMs), `the fastest, alone: ${ms(singleMs)}`),
  ];
  const measured = measuredMs(state, state.split, state.layout);
  if (measured) {
    const error = latencyMs / measured - 1;
    const off = Math.abs(100 * error).toFixed(1);
    cards.push(
      card("Measured in this run", ms(measured), `predicted ${off} % ${error < 0 ? "less" : "more"}`),
    );
  }
  byId("numbers").replaceChildren(...cards);
  byId("brief").textContent =
    `${ms(latencyMs)}, ${efficiency} of capacity${even ? `, ${times(evenMs)} even` : ""}`;
}

function showTable(plan, setting) {
  const rows = plan.tokens.map((count, rank) => {
    const row = plan.rows.find((one) => one.rank === rank);
    const waitMs = row ? sum(row.hops.map((hop) => hop.waitMs)) : 0;
    const busyMs = row ? row.end - waitMs : 0;
    const figures = [setting.speeds[rank], busyMs, waitMs, plan.latencyMs - busyMs].map(figure);
    const cells = [whole(count), ...figures].map((textContent) =>
      made("td", { className: "n", textContent }),
    );
    const positions = plan.shards[rank].map((span) => span.join(":")).join(" + ") || "none";
    return made("tr", {}, [made("td", {}, [chipOf(rank), ` ${rank}`]), ...cells, made("td", {}, positions)]);
  });
  byId("ranks-table").tBodies[0].replaceChildren(...rows);
}

function chipOf(rank) {
  const chip = made("span", { className: "chip" });
  chip.style.background = rankFill(rank);
  return chip;
}

// The plan, or undefined where there are too few tokens for one.
function attempt(split, layout, setting) {
  try {
    return planned(split, layout, setting);
  } catch {
    return undefined;
  }
}

// What the chart is drawn over: its values, the state at each of them, and how the axis looks.
function chartAxis() {
  if (byId("axis").value === "length") {
    const values = Array.from(
      { length: 31 },
      (_, index) => Math.round((1024 * 2 ** (index / 3)) / 128) * 128,
    );
    return {
      values,
      at: (seqLen) => ({ ...state, seqLen }),
      now: state.seqLen,
      label: "prompt, tokens",
      words: shortTokens,
      log: true,
      low: Math.min(1024, state.seqLen),
      high: Math.max(1048576, state.seqLen),
      marks: [1, 4, 16, 64, 256, 1024].map((k) => 1024 * k),
    };
  }
  const slowest = best(state.speeds.map((speed) => -speed));
  return {
    values: Array.from({ length: 20 }, (_, index) => 5 + 5 * index),
    at: (speed) => ({ ...state, speeds: state.speeds.with(slowest, speed) }),
    now: state.speeds[slowest],
    label: `speed of rank ${slowest}, % of full speed`,
    words: String,
    log: false,
    low: 0,
    high: 100,
    marks: [0, 20, 40, 60, 80, 100],
  };
}

function showChart(setting) {
  const axis = chartAxis();
  const settings = axis.values.map((value) => settingOf(axis.at(value)));
  const points = (latencyMs) => {
    const efficiencies = settings.map((one) => capacityIdealMs(one) / latencyMs(one));
    return efficiencies.map((value, index) => [axis.values[index], value]).filter(([, value]) => value > 0);
  };
  const ways = Object.keys(LAYOUTS).flatMap((layout) =>
    Object.keys(SPLITS).map((split) => ({ layout, split })),
  );
  const curves = ways.map(({ layout, split }) => {
    const plan = attempt(split, layout, setting);
    const measured = measuredMs(state, split, layout);
    return {
      layout,
      split,
      points: points((one) => attempt(split, layout, one)?.latencyMs),
      now: plan && capacityIdealMs(setting) / plan.latencyMs,
      measured: measured && (state.shape.layers * capacityIdealMs(setting)) / measured,
    };
  });
  drawChart(
    views.chart,
    curves,
    axis,
    state,
    points((one) => aloneMs(one.costs[best(one.speeds)], one.seqLen, one.causal)),
  );
  byId("measured-key").hidden = curves.every((curve) => curve.measured === undefined);
}

// Some hundred plans, which must not hold up a slider that is being moved.
function chartSoon() {
  charting ||= setTimeout(() => {
    charting = 0;
    showChart(settingOf(state));
  }, 30);
}

function showControls() {
  showRanks();
  showFields.forEach((showField) => showField());
  byId("rank-count").value = state.speeds.length;
  for (const name of Object.keys(CHOICES)) controls[name].value = state[name];
  byId("run").value = state.run;
  byId("tile").value = state.tile;
  const shape = DATA.shapes.find((one) => SHAPE_FIELDS.every((name) => one[name] === state.shape[name]));
  byId("shape").value = shape ? shape.name : "";
  const run = runOf(state);
  byId("costs").textContent =
    run && run.costs
      ? `Costs are those measured for run ${state.run}, scaled with each rank's speed.`
      : "Costs are FLOPs / speed, and the fixed cost.";
}

function show() {
  showControls();
  const setting = settingOf(state);
  byId("error").textContent = "";
  byId("results").hidden = false;
  let plan;
  try {
    plan = planned(state.split, state.layout, setting);
  } catch (error) {
    byId("error").textContent = `There is no such plan: ${error.message}.`;
    byId("brief").textContent = "no such plan";
    byId("results").hidden = true;
    return;
  }
  showNumbers(plan, setting);
  byId("layout-words").textContent = LAYOUT_WORDS[plan.causal ? state.layout : "full"];
  byId("hop-words").textContent = HOP_WORDS[state.hops];
  drawPrompt(views.prompt, plan);
  drawShares(views.shares, plan, setting.speeds);
  const idealMs = capacityIdealMs(setting);
  const evenMs = attempt("even", state.layout, setting)?.latencyMs ?? 0;
  const lastMs = Math.max(plan.latencyMs, idealMs, byId("same-scale").checked ? evenMs : 0);
  drawTimeline(views.timeline, plan, state.speeds, idealMs, lastMs);
  drawMap(views.map, plan);
  showTable(plan, setting);
  chartSoon();
}

const showFields = [...Object.keys(SLIDERS).map(sliderFor), shapeFields()];
for (const { name } of DATA.shapes) byId("shape").add(new Option(name, name));
for (const { name } of DATA.runs) byId("run").add(new Option(name, name));
byId("run-box").hidden = !DATA.runs.length;
byId("run").addEventListener("change", () => {
  state = withRun(state, byId("run").value);
  changed();
});
byId("shape").addEventListener("change", () => {
  const shape = DATA.shapes.find(({ name }) => name === byId("shape").value);
  if (shape) set({ shape: { ...shape } });
});
for (let count = 1; count <= MOST_RANKS; count++) byId("rank-count").add(new Option(count, count));
byId("rank-count").addEventListener("change", () => {
  state = withRanks(state, Number(byId("rank-count").value));
  changed();
});
byId("tile").addEventListener("change", () =>
  set({ tile: stateOf(`#tile=${byId("tile").value}`, state).tile }),
);
for (const name of Object.keys(CHOICES)) {
  controls[name].forEach((radio) => radio.addEventListener("change", () => set({ [name]: radio.value })));
}
byId("axis").addEventListener("change", show);
byId("same-scale").addEventListener("change", show);
byId("reset").addEventListener("click", () => {
  state = firstState();
  changed();
});
byId("copy").addEventListener("click", async () => {
  history.replaceState(null, "", `#${hashOf(state)}`);
  await navigator.clipboard?.writeText(location.href);
  byId("copied").textContent = navigator.clipboard ? "copied" : "it is in the address bar";
});
window.addEventListener("hashchange", () => {
  state = stateOf(location.hash, state);
  changed();
});
window.addEventListener("resize", show);
show();
