"use strict";
// The pictures: each function draws one plan as SVG into a box of the page.
// Colours are CSS variables: --rankN and --inkN (text on it) of a rank, --even, --lut, --balanced.

const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes = {}, children = []) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[children].flat());
  return made;
}

function text(x, y, words, attributes = {}) {
  return node("text", { x, y, ...attributes }, words);
}

function titled(shape, title) {
  shape.append(node("title", {}, title));
  return shape;
}

// A picture as wide as its box; draw(width) gives what is in it.
function picture(box, height, label, draw) {
  const width = Math.max(box.clientWidth, 280);
  const drawn = node("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": label,
  });
  drawn.append(...draw(width));
  box.replaceChildren(drawn);
}

const rankFill = (rank) => `var(--rank${rank})`;
const rankInk = (rank) => `var(--ink${rank})`;
const whole = (value) => Math.round(value).toLocaleString("en-US");
const percent = (part, digits = 0) => `${(100 * part).toFixed(digits)} %`;

// Three digits; what is left of rounding errors is 0.
function figure(value) {
  return Number(value < 1e-9 ? 0 : value.toPrecision(value >= 1000 ? 4 : 3)).toLocaleString("en-US", {
    maximumSignificantDigits: 4,
  });
}

const ms = (value) => `${figure(value)} ms`;

function shortTokens(count) {
  return count >= 1048576
    ? `${count / 1048576}M`
    : count >= 1024
      ? `${Math.round(count / 102.4) / 10}k`
      : `${count}`;
}

// Round numbers from 0 to `most`, about as many as wanted.
function ticks(most, wanted) {
  const rough = most / wanted;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((value) => value >= rough);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, index) =>
    Number((index * step).toPrecision(12)),
  );
}

// The longest of some words that fits the width at 12 px, or nothing.
function fitting(width, words) {
  return words.find((word) => 7 * word.length + 6 < width) || "";
}

function piece(x, y, width, height, rank, words, title) {
  const bar = titled(node("rect", { x, y, width, height, fill: rankFill(rank), class: "piece" }), title);
  const label = text(x + width / 2, y + height / 2 + 4, fitting(width, words), {
    style: `fill: ${rankInk(rank)}`,
    class: "mid inside",
  });
  return [bar, label];
}

// The prompt from its first token to its last, each piece in its rank's colour.
function drawPrompt(box, plan) {
  const seqLen = sum(plan.tokens);
  picture(box, 78, `Who holds which part of ${seqLen} tokens`, (width) => {
    const x = (position) => (position / seqLen) * width;
    const pieces = plan.shards.flatMap((spans, rank) =>
      spans.flatMap(([start, stop], index) => {
        const part = spans.length === 1 ? "" : index ? " tail" : " head";
        const count = whole(stop - start);
        const title = `rank ${rank}${part}: positions ${start} to ${stop}, ${count} tokens`;
        return piece(
          x(start),
          0,
          x(stop) - x(start),
          46,
          rank,
          [`${rank}${part} · ${count}`, `${rank}${part}`, `${rank}`],
          title,
        );
      }),
    );
    return [
      ...pieces,
      text(0, 66, "first token", { class: "dim" }),
      text(width, 66, `token ${whole(seqLen)}`, { class: "dim end" }),
    ];
  });
}

// Shares of speed, tokens and attention work as bars one below the other: a good split has them alike.
function drawShares(box, plan, speeds) {
  const pairs = plan.tokens.map(() => 0);
  for (const row of plan.rows) pairs[row.rank] = sum(row.hops.map((hop) => hop.pairs));
  const rows = [
    ["speed", speeds],
    ["tokens", plan.tokens],
    ["attention", pairs],
  ];
  picture(box, 26 * rows.length, "Each rank's share of speed, tokens and attention work", (width) => {
    const left = 76;
    const room = width - left;
    return rows.flatMap(([name, values], index) => {
      const y = 26 * index;
      const total = sum(values);
      let start = left;
      const pieces = values.flatMap((value, rank) => {
        const part = value / total;
        const size = part * room;
        start += size;
        return piece(
          start - size,
          y,
          size,
          20,
          rank,
          [percent(part, 1), percent(part)],
          `rank ${rank}: ${percent(part, 1)} of ${name}`,
        );
      });
      return [text(0, y + 14, name), ...pieces];
    });
  });
}

// One row per rank: linear layers, blocks coloured by whose keys and values, waits, idle time; below it shards on
// their way.
function drawTimeline(box, plan, speeds, idealMs, lastMs) {
  const rowHeight = 44;
  const left = 64;
  const ranks = plan.tokens.length;
  picture(box, rowHeight * ranks + 46, `What ${ranks} ranks do over ${ms(plan.latencyMs)}`, (width) => {
    const room = width - left - 14;
    const x = (time) => left + (time / lastMs) * room;
    const base = rowHeight * ranks + 6;
    const axis = ticks(lastMs, Math.max(2, Math.floor(room / 90))).flatMap((time) => [
      node("line", { x1: x(time), x2: x(time), y1: 0, y2: base, class: "grid" }),
      text(x(time), base + 16, time === 0 ? "0 ms" : `${time}`, { class: "mid dim" }),
    ]);
    const rows = plan.tokens.flatMap((count, rank) => {
      const row = plan.rows.find((one) => one.rank === rank);
      const y = rowHeight * rank + 6;
      const name = [
        text(0, y + 12, `rank ${rank}`),
        text(0, y + 27, percent(speeds[rank] / 100), { class: "dim" }),
      ];
      return [
        ...name,
        ...(row
          ? timelineRow(row, plan.latencyMs, x, y)
          : [text(left + 6, y + 16, "left out", { class: "dim" })]),
      ];
    });
    const ideal = [
      node("line", { x1: x(idealMs), x2: x(idealMs), y1: 0, y2: base, class: "ideal" }),
      text(x(idealMs), base + 34, `capacity ideal ${ms(idealMs)}`, {
        class: x(idealMs) > width / 2 ? "end small" : "small",
      }),
    ];
    return [stripes(), ...axis, ...rows, ...ideal];
  });
}

function timelineRow(row, latencyMs, x, y) {
  const bar = (begin, end, attributes, title) => {
    return titled(
      node("rect", { x: x(begin), y, width: Math.max(x(end) - x(begin), 0), height: 24, ...attributes }),
      `${title}: ${ms(end - begin)}`,
    );
  };
  const drawn = [
    bar(0, row.linearEnd, { class: "linear" }, `rank ${row.rank}, linear layers and fixed cost`),
  ];
  for (const { source, waitMs, computeBegin: begin, computeEnd: end } of row.hops) {
    if (waitMs > 0) {
      const what = `waiting for rank ${source}'s keys and values`;
      drawn.push(bar(begin - waitMs, begin, { class: "waiting" }, what));
    }
    const title = `rank ${row.rank}, attention to rank ${source}'s keys and values: ${ms(end - begin)}`;
    drawn.push(
      ...piece(x(begin), y, x(end) - x(begin), 24, source, [`keys of ${source}`, `${source}`], title),
    );
  }
  if (x(latencyMs) - x(row.end) > 0.5) {
    drawn.push(bar(row.end, latencyMs, { class: "idle" }, `rank ${row.rank} is done and idle`));
  }
  for (const { source, transferBegin: begin, arrival } of row.hops.slice(1)) {
    const title = `rank ${source}'s shard on its way to rank ${row.rank}: ${ms(arrival - begin)}`;
    drawn.push(
      titled(
        node("rect", {
          x: x(begin),
          y: y + 27,
          width: Math.max(x(arrival) - x(begin), 1),
          height: 5,
          fill: rankFill(source),
        }),
        title,
      ),
    );
  }
  return drawn;
}

function stripes() {
  const line = node("path", { d: "M0 6 L6 0", stroke: "var(--text)", "stroke-width": 1.2 });
  return node(
    "defs",
    {},
    node("pattern", { id: "stripes", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, line),
  );
}

// Queries down, keys across: a rank computes what its queries see, so its area is its attention work.
// Under a causal mask that is what lies at or before each query.
function drawMap(box, plan) {
  const seqLen = sum(plan.tokens);
  picture(box, 300, "Which rank computes which query-key pairs", (width) => {
    const size = Math.min(width - 30, 262);
    const at = (position) => (position / seqLen) * size;
    const areas = plan.shards.flatMap((spans, rank) =>
      spans.map(([start, stop]) => {
        const [first, last] = plan.causal ? [start, stop] : [seqLen, seqLen];
        const corners = [
          [0, start],
          [first, start],
          [last, stop],
          [0, stop],
        ];
        const points = corners.map(([key, query]) => `${24 + at(key)},${20 + at(query)}`).join(" ");
        const pairs = plan.causal
          ? ownPairs(stop, true) - ownPairs(start, true)
          : (stop - start) * seqLen;
        return titled(
          node("polygon", { points, fill: rankFill(rank), class: "piece" }),
          `rank ${rank}: ${percent(pairs / ownPairs(seqLen, plan.causal), 1)} of the pairs`,
        );
      }),
    );
    return [
      ...areas,
      text(24 + size / 2, 12, "keys", { class: "mid dim" }),
      text(0, 0, "queries", { class: "mid dim", transform: `translate(14 ${20 + size / 2}) rotate(-90)` }),
    ];
  });
}
