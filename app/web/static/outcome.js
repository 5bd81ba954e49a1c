/** What a finished job found: its figures, and the comparison with its baselines. */

import { get } from "./api.js";
import { h } from "./dom.js";
import { duration, percent, short, words } from "./format.js";

const SHARES = /accuracy|rate|fraction|calibration|precision|auroc/;

/** A row of large figures; numbers alone, nested ones flattened. */
export function figures(job) {
  const found = flat(job.metrics || {});
  if (!found.length) return null;
  return h("dl", { class: "figures", "aria-label": "Figures" },
    found.map(([name, value]) => h("div", {}, h("dd", {}, shown(name, value)), h("dt", {}, words(name)))));
}

function flat(metrics, prefix = "") {
  return Object.entries(metrics).flatMap(([name, value]) => {
    if (typeof value === "number") return [[prefix + name, value]];
    return value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${name}_`) : [];
  });
}

const shown = (name, value) => (SHARES.test(name) ? percent(value) : name.endsWith("seconds") ? duration(value) : short(value));

/** The job beside the baselines trained on the same split, seed and epochs; nothing when it was trained alone. */
export async function comparison(job) {
  const others = job.comparison || [];
  if (!others.length) return null;
  const rows = [{ ...job, own: true }, ...others];
  const best = Math.max(...rows.map((each) => accuracy(each) ?? 0));
  return h("section", { "aria-label": "Comparison" },
    h("h3", {}, "Beside its baselines"),
    h("ul", { class: "compare" }, rows.map((each) =>
      h("li", { class: each.own ? "own" : "", vars: { share: (accuracy(each) ?? 0) / (best || 1) } },
        h("span", { class: "compare-name" }, each.method), h("span", { class: "compare-bar" }),
        h("span", { class: "compare-value" }, accuracy(each) === null ? each.status : percent(accuracy(each)))))),
    h("p", { class: "quiet" }, "Test accuracy at the last epoch: same split, same seed, same number of epochs."));
}

function accuracy(job) {
  const value = job.metrics?.test_accuracy;
  return typeof value === "number" ? value : value?.last ?? null;
}
