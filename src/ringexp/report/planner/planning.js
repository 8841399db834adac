"use strict";
// What ringexp/planning/ and ringexp/launch/planning.py compute, for the browser: without chunks, padding and
// memory limits, and with all hops posted ahead of compute.
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

// Token counts about proportional to weights, in whole tiles, with the smallest largest count / weight; every
// rank gets a tile.
function apportion(weights, seqLen, tile) {
  if (seqLen < weights.length * tile) {
    throw new Error(
      `${seqLen} tokens are fewer than one tile of ${tile} for each of ${weights.length} ranks`,
    );
  }
  const total = sum(weights);
  const whole = seqLen - (seqLen % tile);
  const tokens = weights.map((weight) => Math.max(Math.floor(((weight / total) * whole) / tile), 1) * tile);
  const last = tokens.length - 1;
  while (sum(tokens) > whole) {
    // The first of the reversed ranks, so that ties are taken from the higher one.
    const ends = tokens.map((count, rank) => (count > tile ? count / weights[rank] : -Infinity));
    tokens[last - best(ends.reverse())] -= tile;
  }
  for (let left = seqLen - sum(tokens); left > 0; left = seqLen - sum(tokens)) {
    const given = Math.min(tile, left);
    tokens[best(tokens.map((count, rank) => -(count + given) / weights[rank]))] += given;
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

// members: the ranks in the ring, those that hold tokens.
function makePlan(tokens, layout, causal) {
  const members = tokens.map((_, rank) => rank).filter((rank) => tokens[rank]);
  return { tokens, causal, members, shards: LAYOUTS[layout](tokens) };
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

function withHops(cost, hops) {
  const fixed_ms = cost.fixed_ms + hops * cost.hop_ms;
  const token_ms = cost.token_ms + hops * cost.hop_token_ms;
  return { ...cost, fixed_ms, token_ms, hop_ms: 0, hop_token_ms: 0 };
}

// The pairs of some tokens among themselves.
function ownPairs(tokens, causal) {
  return causal ? (tokens * (tokens + 1)) / 2 : tokens * tokens;
}

// One rank doing the whole prompt.
function aloneMs(cost, seqLen, causal) {
  const pairs = ownPairs(seqLen, causal);
  return timeMs(cost, seqLen, pairs, causal ? pairs : 0);
}

// How many of a rank's tokens are in its first span.
function inFirst({ shards }, rank) {
  return shards[rank][0][1] - shards[rank][0][0];
}

// How `rank` computes with the shard of `source`. Under a causal mask all its queries see the first span of a
// rank before it, and those in its second span all of a rank after it.
function blockOf(plan, cost, rank, source) {
  const { tokens, causal } = plan;
  const own = tokens[rank];
  if (source === rank) {
    const pairs = ownPairs(own, causal);
    return { pairs, keys: own, computeMs: attentionMs(cost, pairs, causal ? pairs : 0) };
  }
  const queries = causal && source > rank ? own - inFirst(plan, rank) : own;
  const keys = causal && source < rank ? inFirst(plan, source) : tokens[source];
  const hopMs = queries ? cost.hop_ms + cost.hop_token_ms * own : 0;
  const computeMs = cost.pair_ms * queries * keys + hopMs;
  return { pairs: queries * keys, keys: queries ? keys : 0, computeMs };
}

// The most tokens a whose work takes no more than leftMs: square * a^2 + linear * a = leftMs.
function tokensBy(cost, leftMs, seqLen, start, layout, causal) {
  if (leftMs <= 0) return 0;
  let square = cost.diagonal_ms / 2;
  let linear = cost.token_ms + (cost.pair_ms * seqLen) / 2;
  if (!causal) {
    square = 0;
    linear = cost.token_ms + cost.pair_ms * seqLen;
  } else if (layout === "contiguous") {
    square = (cost.pair_ms + cost.diagonal_ms) / 2;
    linear = cost.token_ms + cost.pair_ms * start;
  }
  if (!square && !linear) return Infinity;
  return (2 * leftMs) / (linear + Math.sqrt(linear * linear + 4 * square * leftMs));
}

// Water-filling: the least time by which all ranks together hold all tokens, by bisection, in whole tiles.
function balance(costs, seqLen, tile, layout, causal) {
  function filled(deadlineMs) {
    const counts = [];
    let start = 0;
    for (let rank = 0; rank < costs.length; rank++) {
      const left = seqLen - start;
      const by = tokensBy(costs[rank], deadlineMs - costs[rank].fixed_ms, seqLen, start, layout, causal);
      const can = Math.min(by, left);
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

// What lies so many places before each member.
function turned(row, hops) {
  return row.map((_, place) => row[(place - hops + row.length) % row.length]);
}

const latest = (row, other) => row.map((time, place) => Math.max(time, other[place]));

// The plan with what every member does when: rows of { rank, linearEnd, hops, end }. Linear layers come
// first, then the own shard, hop 0, then shards in order of arrival. A hop is a send to the next member and a
// receive from the one before: it begins when both ends are at it, and is over on a member when it has done
// both. With hop.direct it comes from the owner itself, once that is done with its linear layers, and then only
// what the member computes with.
function simulate(plan, costs, hop) {
  const { members, tokens } = plan;
  const linear = members.map((rank) => linearMs(costs[rank], tokens[rank]));
  const rows = members.map((rank, place) => ({ rank, linearEnd: linear[place], hops: [] }));
  let [transfers, arrivals, ends] = [linear, linear, linear];
  for (let number = 0; number < members.length; number++) {
    const sources = turned(members, number);
    const blocks = members.map((rank, place) => blockOf(plan, costs[rank], rank, sources[place]));
    if (number) {
      transfers = latest(arrivals, hop.direct ? turned(linear, number) : turned(arrivals, 1));
      const carried = (place) => (hop.direct ? blocks[place].keys : tokens[sources[place]]);
      const received = transfers.map(
        (begin, place) => begin + (carried(place) && hop.latency_ms + hop.token_ms * carried(place)),
      );
      arrivals = hop.direct ? received : latest(received, turned(received, -1));
    }
    const begins = latest(ends, arrivals);
    rows.forEach(({ rank, hops }, place) => {
      const [source, transferBegin, arrival] = [sources[place], transfers[place], arrivals[place]];
      const { pairs, computeMs } = blocks[place];
      const computeBegin = begins[place];
      const computeEnd = computeBegin + computeMs;
      const waitMs = computeBegin - ends[place];
      hops.push({ source, pairs, transferBegin, arrival, waitMs, computeBegin, computeEnd });
    });
    ends = rows.map(({ hops }) => hops[number].computeEnd);
  }
  rows.forEach((row, place) => (row.end = ends[place]));
  return { ...plan, rows, latencyMs: Math.max(...ends) };
}

// The balanced plan of all ranks, or of all but the slowest one, two, ... where that is earlier with its
// hops. Ranks are few here: every number of them is tried.
function balancedPlan({ seqLen, tile, costs, hop, causal }, layout) {
  const everyone = costs.map((_, rank) => rank);
  const alone = costs.map((cost) => timeMs(cost, seqLen, seqLen ** 2 / 2, seqLen ** 2 / 2));
  const slowest = [...everyone].sort((a, b) => alone[b] - alone[a]);
  const plans = everyone.map((leftOut) => {
    const ranks = slowest.slice(leftOut).sort((a, b) => a - b);
    const withTheirs = ranks.map((rank) => withHops(costs[rank], ranks.length - 1));
    const counts = balance(withTheirs, seqLen, tile, layout, causal);
    const tokens = everyone.map((rank) => counts[ranks.indexOf(rank)] ?? 0);
    return simulate(makePlan(tokens, layout, causal), costs, hop);
  });
  return plans[best(plans.map((plan) => -plan.latencyMs))];
}

// split: even, lut (in proportion to speeds) or balanced (all ranks done at once, by their costs).
function planned(split, layout, setting) {
  const { seqLen, tile, costs, speeds, hop, causal } = setting;
  if (split === "balanced") return balancedPlan(setting, layout);
  const weights = split === "even" ? speeds.map(() => 1) : speeds;
  return simulate(makePlan(apportion(weights, seqLen, tile), layout, causal), costs, hop);
}

// The time that the ranks' summed speed would allow: T(the fastest alone) x its speed / sum of speeds.
function capacityIdealMs({ seqLen, costs, speeds, causal }) {
  const fastest = best(speeds);
  return (aloneMs(costs[fastest], seqLen, causal) * speeds[fastest]) / sum(speeds);
}
