// The time scale: marks at round times of the zone that is shown, not of UTC.

import { clock, clockS, day, month, offset, year } from "../format.js";

const { defaultHorzScaleBehavior } = window.LightweightCharts;

// The weights of the chart library: the rounder a time, the heavier.
const STEPS = [[1, 10], [60, 20], [300, 21], [1800, 22], [3600, 30], [10_800, 31], [21_600, 32], [43_200, 33], [86_400, 50]];

function shifted(t) {
  return t + offset(t * 1000) * 60;
}

function weight(before, here) {
  const a = new Date(before * 1000);
  const b = new Date(here * 1000);
  if (a.getUTCFullYear() !== b.getUTCFullYear()) return 70;
  if (a.getUTCMonth() !== b.getUTCMonth()) return 60;
  for (let at = STEPS.length - 1; at >= 0; at -= 1) {
    const [seconds, heavy] = STEPS[at];
    if (Math.floor(before / seconds) !== Math.floor(here / seconds)) return heavy;
  }
  return 0;
}

export class ZonedScale extends defaultHorzScaleBehavior() {
  fillWeightsForPoints(points, start = 0) {
    if (points.length === 0) return;
    let before = start === 0 ? null : shifted(points[start - 1].originalTime);
    for (let at = start; at < points.length; at += 1) {
      const here = shifted(points[at].originalTime);
      if (before !== null) points[at].timeWeight = weight(before, here);
      before = here;
    }
    if (start === 0) {
      const here = shifted(points[0].originalTime);
      const next = points.length > 1 ? shifted(points[1].originalTime) : here + 60;
      points[0].timeWeight = weight(2 * here - next, here);
    }
  }
}

/** What a mark says; `kind` is the library's: year, month, day, time, time with seconds. */
export function mark(seconds, kind) {
  const ms = seconds * 1000;
  return [year, month, day, clock, clockS][kind](ms);
}
