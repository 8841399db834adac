"use strict";
// The planner of ringexp/planning/ for the browser: without chunks, padding and memory limits, and with all hops
// posted ahead of compute. It needs no DOM, so node can run it.
// Costs, hops and their names are those of Python; a span is [start, stop], a shard a sorted list of spans.
// tests/web/test_golden.py compares it with the Python planner.

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

// The time that `a` tokens take on one rank: fixed + square * a^2 + (linear + slope * start + half * odd) * a,
// after ranks with `start` tokens, of which `odd` have odd counts. half: the time of half a pair where odd counts
// matter.
function rankTimes(cost, seqLen, causal, zigzag) {
  const fixed = cost.fixed_ms;
  if (!causal) return { fixed, square: 0, linear: cost.token_ms + cost.pair_ms * seqLen, slope: 0, half: 0 };
  let square = cost.diagonal_ms / 2;
  const half = cost.pair_ms / 2;
  if (zigzag) {
    return { fixed, square, linear: cost.token_ms + half * (seqLen + 1) + square, slope: 0, half };
  }
  square += half;
  return { fixed, square, linear: cost.token_ms + square, slope: cost.pair_ms, half: 0 };
}

// The most tokens a with square * a^2 + linear * a <= leftMs.
function tokensBy(leftMs, square, linear) {
  const divisor = linear + Math.sqrt(linear * linear + 4 * square * leftMs);
  return divisor ? (2 * leftMs) / divisor : Infinity;
}

const PRECISION = 1e-12;
const FRUITLESS = 3;
const FOLLOWED = 64;

// Water-filling: the least time by which all ranks together hold all tokens, by bisection, in whole tiles.
// As in ringexp/planning/waterfill.py, the furthest end of each kind is followed from rank to rank.
function balance(costs, seqLen, tile, layout, causal) {
  const zigzag = causal && layout !== "contiguous";
  const ranks = costs.map((cost) => rankTimes(cost, seqLen, causal, zigzag));
  const rest = seqLen % tile;
  const mostEnds = Math.max(Math.floor(FOLLOWED / costs.length), 1);
  // The kinds of counts that a rank may have, of whole tiles, and with the rest: 0 even, 1 odd, -1 any.
  const kindsOf = (parity) => (!zigzag ? [-1] : tile % 2 ? [0, 1] : [parity]);
  const kinds = { tiles: kindsOf(0), rest: kindsOf(rest % 2) };

  function makespanMs(counts) {
    let [start, odd, latest] = [0, 0, 0];
    counts.forEach((count, rank) => {
      const { fixed, square, linear, slope, half } = ranks[rank];
      if (count) {
        let [perToken, less] = [linear + slope * start + half * odd, 0];
        if (count % 2) {
          perToken += half;
          less = half * (seqLen - start);
          odd += 1;
        }
        latest = Math.max(latest, fixed + (square * count + perToken) * count - less);
      }
      start += count;
    });
    return latest;
  }

  // The most tokens of a kind that a rank can do after `end`: whole tiles and `more`.
  function largest(end, { square, linear, slope, half }, leftMs, more, kind) {
    const perToken = linear + slope * end.tokens + half * end.odd + (kind === 1 ? half : 0);
    const inAll = leftMs + (kind === 1 ? half * (seqLen - end.tokens) : 0);
    const can = Math.min(tokensBy(inAll, square, perToken), seqLen - end.tokens) - more;
    const over = can % tile;
    const count = (Math.round((can - over) / tile) - (over < 0 ? 1 : 0)) * tile + more;
    return kind >= 0 && Math.abs(count % 2) !== kind ? count - tile : count;
  }

  function add(reached, end, count, odd, restGiven) {
    const key = `${end.odd + odd} ${restGiven}`;
    if (reached.has(key) && reached.get(key).tokens >= end.tokens + count) return;
    reached.set(key, { tokens: end.tokens + count, odd: end.odd + odd, restGiven, count, before: end });
  }

  function extend(end, rank, leftMs, reached) {
    add(reached, end, 0, 0, end.restGiven);
    if (leftMs <= 0 || end.tokens >= seqLen) return;
    for (const kind of kinds.tiles) {
      const count = largest(end, rank, leftMs, 0, kind);
      if (count > 0) add(reached, end, count, kind === 1 ? 1 : 0, end.restGiven);
    }
    if (end.restGiven) return;
    for (const kind of kinds.rest) {
      const count = largest(end, rank, leftMs, rest, kind);
      if (count > 0) add(reached, end, count, kind === 1 ? 1 : 0, true);
    }
  }

  // What each rank does by the deadline, until all tokens are given out; null if they are too many.
  function filled(deadlineMs) {
    let ends = [{ tokens: 0, odd: 0, restGiven: !rest, count: 0, before: null }];
    for (const rank of ranks) {
      const reached = new Map();
      for (const end of ends) extend(end, rank, deadlineMs - rank.fixed, reached);
      const ordered = [...reached.values()].sort((a, b) => b.tokens - a.tokens || a.odd - b.odd);
      ends = [true, false].flatMap((given) =>
        ordered.filter((end) => end.restGiven === given).slice(0, mostEnds),
      );
    }
    let end = ends[0];
    if (!end.restGiven || end.tokens < seqLen) return null;
    const counts = [];
    for (; end.before; end = end.before) counts.push(end.count);
    return counts.reverse();
  }

  let low = 0;
  let high = Math.max(...costs.map((cost) => timeMs(cost, seqLen, seqLen ** 2, seqLen ** 2)));
  let counts = filled(high);
  while (!counts) {
    high = Math.max(2 * high, 1);
    counts = filled(high);
  }
  for (let fruitless = 0; high - low > PRECISION * high; ) {
    const middle = fruitless === FRUITLESS ? high * (1 - PRECISION) : (low + high) / 2;
    const found = filled(middle);
    if (!found) {
      low = middle;
      fruitless += 1;
    } else {
      counts = found;
      high = Math.min(middle, makespanMs(found));
      fruitless = 0;
    }
  }
  return counts;
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

if (typeof module !== "undefined") module.exports = { planned, capacityIdealMs, aloneMs };
