"use strict";
// The chart: what every partitioner and layout would make of the setting.

// Capacity efficiency of every partitioner and layout over an axis, with the present plan marked on it.
// curves: [{ split, layout, points: [[x, efficiency]], now, measured }], the last two where they are known.
// axis: { label, low, high, log, marks, words, now }. alone: points of the fastest rank alone.
function drawChart(box, curves, axis, present, alone) {
  picture(box, 320, `Capacity efficiency over ${axis.label}`, (width) => {
    const left = 44;
    const right = width - 12;
    const top = 16;
    const base = 268;
    const scale = axis.log ? Math.log : (value) => value;
    const [low, high] = [axis.low, axis.high].map(scale);
    const x = (value) => left + ((scale(value) - low) / (high - low)) * (right - left);
    const values = curves.flatMap(({ points, measured }) => [
      ...points.map((point) => point[1]),
      measured ?? 0,
    ]);
    const most = Math.max(1, ...values);
    const y = (value) => base - (value / most) * (base - top);
    const nowX = x(axis.now);
    const line = (points, attributes) => {
      const d = points
        .map(([a, b], index) => `${index ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`)
        .join("");
      return node("path", { d, ...attributes });
    };
    const level = (value, kind) =>
      node("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: kind });
    const levels = ticks(most, 5).flatMap((value) => {
      return [level(value, "grid"), text(left - 6, y(value) + 4, `${value}`, { class: "end dim" })];
    });
    const marks = axis.marks.filter((_, index) => width > 560 || index % 2 === 0);
    return [
      ...levels,
      ...marks.map((value) => text(x(value), base + 18, axis.words(value), { class: "mid dim" })),
      level(1, "ideal"),
      line(alone, { class: "alone" }),
      node("line", { x1: nowX, x2: nowX, y1: top, y2: base, class: "now" }),
      ...curves.map((curve) => {
        return line(curve.points, { class: `curve ${curve.layout}`, stroke: `var(--${curve.split})` });
      }),
      ...curves.flatMap((curve) => chartMarks(curve, nowX, y, present)),
      text((left + right) / 2, base + 40, axis.label, { class: "mid" }),
    ];
  });
}

// A dot for what is predicted now, larger for the plan that is shown, and a diamond for what was measured.
function chartMarks({ split, layout, now, measured }, x, y, present) {
  const colour = `var(--${split})`;
  const name = `${layout}, ${SPLITS[split]}`;
  const drawn = [];
  if (now !== undefined) {
    const shown = split === present.split && layout === present.layout;
    const dot = node("circle", {
      cx: x,
      cy: y(now),
      r: shown ? 7 : 3,
      fill: colour,
      class: shown ? "here" : "",
    });
    drawn.push(titled(dot, `${name}: ${percent(now, 1)}`));
  }
  if (measured !== undefined) {
    const corners = [
      [0, -7],
      [7, 0],
      [0, 7],
      [-7, 0],
    ];
    const points = corners.map(([right, down]) => `${x + right},${y(measured) + down}`).join(" ");
    const diamond = node("polygon", { points, stroke: colour, class: "measured" });
    drawn.push(titled(diamond, `${name}, measured: ${percent(measured, 1)}`));
  }
  return drawn;
}
