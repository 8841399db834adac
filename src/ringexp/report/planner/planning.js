"use strict";
// What ringexp/planning/ and ringexp/launch/planning.py compute, for the browser, causal and unchunked.
// Costs, hops and their names are those of Python; a span is [start, stop], a shard a sorted list of spans.
// tests/report/test_planner.py holds both against each other.

function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

// The first index with the largest score.
function best(scores) {
  return scores.reduce((found, score, index) => (score > scores[found] ? index : found), 0);
}

// Token counts in proportion to weights, in whole tiles by largest remainder; every rank gets a tile.
function apportion(weights, seqLen, tile) {
  if (seqLen < weights.length * tile) {
    throw new Error(
      `${seqLen} tokens are fewer than one tile of ${tile} for each of ${weights.length} ranks`,
    );
  }
  const total = sum(weights);
  const exact = weights.map((weight) => (weight / total) * seqLen);
  const tokens = exact.map((x) => Math.max(Math.round((x - (x % tile)) / tile), 1) * tile);
  while (sum(tokens) > seqLen) {
    tokens[best(tokens.map((count, rank) => (count > tile ? count - exact[rank] : -Infinity)))] -= tile;
  }
  for (let left = seqLen - sum(tokens); left > 0; left = seqLen - sum(tokens)) {
    tokens[best(tokens.map((count, rank) => exact[rank] - count))] += Math.min(tile, left);
  }
  return tokens;
}

function contiguous(tokens) {
  let start = 0;
  return tokens.map((count) => {
    start += count;
    return count ? [[start - count, start]] : [];
  });
}

// A head piece from the front and a mirrored tail piece from the back; an odd token goes to the head.
function zigzag(tokens) {
  let front = 0;
  let back = sum(tokens);
  return tokens.map((count) => {
    const tailLen = Math.floor(count / 2);
    const head = [front, front + count - tailLen];
    const tail = [back - tailLen, back];
    front = head[1];
    back = tail[0];
    if (!count) return [];
    if (!tailLen) return [head];
    return head[1] === tail[0] ? [[head[0], tail[1]]] : [head, tail];
  });
}

const LAYOUTS = { zigzag, contiguous };

// Query-key pairs of `rank` against `source`: its own shard is one causal square, of another's it sees the
// spans that lie before.
function pairsBetween(shards, rank, source) {
  const lengths = ([start, stop]) => stop - start;
  if (rank === source) {
    const own = sum(shards[rank].map(lengths));
    return { pairs: (own * (own + 1)) / 2, causalPairs: (own * (own + 1)) / 2 };
  }
  const pairs = sum(
    shards[rank].map((queries) => {
      const before = shards[source].filter((keys) => keys[1] <= queries[0]);
      return lengths(queries) * sum(before.map(lengths));
    }),
  );
  return { pairs, causalPairs: 0 };
}

function linearMs(cost, tokens) {
  return cost.fixed_ms + cost.token_ms * tokens;
}

function attentionMs(cost, pairs, causalPairs) {
  return cost.pair_ms * pairs + cost.diagonal_ms * causalPairs;
}

function timeMs(cost, tokens, pairs, causalPairs) {
  return tokens ? linearMs(cost, tokens) + attentionMs(cost, pairs, causalPairs) : 0;
}

// One rank doing the whole prompt.
function aloneMs(cost, seqLen) {
  const pairs = (seqLen * (seqLen + 1)) / 2;
  return timeMs(cost, seqLen, pairs, pairs);
}

// The most tokens a whose work takes no more than leftMs: square * a^2 + linear * a = leftMs.
function tokensBy(cost, leftMs, seqLen, start, layout) {
  if (leftMs <= 0) return 0;
  const inside = layout === "contiguous" ? cost.pair_ms + cost.diagonal_ms : cost.diagonal_ms;
  const square = inside / 2;
  const linear =
    cost.token_ms + (layout === "contiguous" ? cost.pair_ms * start : (cost.pair_ms * seqLen) / 2);
  if (!square && !linear) return Infinity;
  return (2 * leftMs) / (linear + Math.sqrt(linear * linear + 4 * square * leftMs));
}

// Water-filling: the least time by which all ranks together hold all tokens, by bisection, in whole tiles.
// A rank that `leftOut` names gets none.
function balance(costs, seqLen, tile, layout, leftOut = new Set()) {
  function filled(deadlineMs) {
    const counts = [];
    let start = 0;
    for (let rank = 0; rank < costs.length; rank++) {
      const left = seqLen - start;
      const by = tokensBy(costs[rank], deadlineMs - costs[rank].fixed_ms, seqLen, start, layout);
      const can = Math.min(by, leftOut.has(rank) ? 0 : left);
      counts.push(can >= left ? left : Math.round((can - (can % tile)) / tile) * tile);
      start += counts[rank];
    }
    return counts;
  }
  let low = 0;
  let high = Math.max(...costs.map((cost) => timeMs(cost, seqLen, seqLen ** 2, seqLen ** 2)));
  while (sum(filled(high)) < seqLen) high = Math.max(2 * high, 1);
  for (let round = 0; round < 200; round++) {
    const middle = (low + high) / 2;
    if (middle === low || middle === high) break;
    if (sum(filled(middle)) >= seqLen) high = middle;
    else low = middle;
  }
  return filled(high);
}

// What every rank does when. All hops are posted ahead of compute: one begins when the rank before has the
// shard and the hop before it is over. Linear layers come first, then blocks in order of arrival.
function timeline(tokens, layout, costs, hop) {
  const shards = LAYOUTS[layout](tokens);
  const members = tokens.map((_, rank) => rank).filter((rank) => tokens[rank]);
  const before = (place, number) => (place - number + members.length) % members.length;
  const rows = members.map((rank) => {
    const linearEnd = linearMs(costs[rank], tokens[rank]);
    return { rank, linearEnd, hops: [{ source: rank, begin: linearEnd, arrival: linearEnd }] };
  });
  for (let number = 1; number < members.length; number++) {
    const begins = rows.map((row, place) => {
      return Math.max(rows[before(place, 1)].hops[number - 1].arrival, row.hops[number - 1].arrival);
    });
    rows.forEach((row, place) => {
      const source = members[before(place, number)];
      const begin = begins[place];
      row.hops.push({ source, begin, arrival: begin + (hop.latency_ms + hop.token_ms * tokens[source]) });
    });
  }
  for (const row of rows) {
    let end = row.linearEnd;
    row.blocks = row.hops.map(({ source, arrival }) => {
      const { pairs, causalPairs } = pairsBetween(shards, row.rank, source);
      const begin = Math.max(arrival, end);
      const waitMs = begin - end;
      end = begin + attentionMs(costs[row.rank], pairs, causalPairs);
      return { source, pairs, waitMs, begin, end };
    });
    row.end = end;
  }
  return { tokens, layout, shards, rows, latencyMs: Math.max(...rows.map((row) => row.end)) };
}

// The balanced plan of all ranks, or of all but the slowest one, two, ... where that is earlier.
function balancedTimeline(seqLen, tile, layout, costs, hop) {
  const alone = costs.map((cost) => timeMs(cost, seqLen, seqLen ** 2 / 2, seqLen ** 2 / 2));
  const slowest = costs.map((_, rank) => rank).sort((a, b) => alone[b] - alone[a]);
  const plans = slowest.map((_, count) => {
    const leftOut = new Set(slowest.slice(0, count));
    return timeline(balance(costs, seqLen, tile, layout, leftOut), layout, costs, hop);
  });
  return plans[best(plans.map((plan) => -plan.latencyMs))];
}

// split: even, lut (in proportion to speeds) or balanced (all ranks done at once, by their costs).
function planned(split, layout, { seqLen, tile, costs, speeds, hop }) {
  if (split === "balanced") return balancedTimeline(seqLen, tile, layout, costs, hop);
  const weights = split === "even" ? speeds.map(() => 1) : speeds;
  return timeline(apportion(weights, seqLen, tile), layout, costs, hop);
}

// The time that the ranks' summed speed would allow: T(the fastest alone) x its speed / sum of speeds.
function capacityIdealMs({ seqLen, costs, speeds }) {
  const fastest = best(speeds);
  return (aloneMs(costs[fastest], seqLen) * speeds[fastest]) / sum(speeds);
}
