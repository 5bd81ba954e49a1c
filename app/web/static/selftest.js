/** How well a job with injected noise did, by the labels before the injection. */

import { h } from "./dom.js";
import { percent, words } from "./format.js";

const FIGURES = [
  ["held_out_accuracy", "Accuracy on held-out images"],
  ["memorised", "Wrong labels memorised"],
  ["estimated_rate", "Noise rate, as estimated"],
  ["auroc", "Ranking: AUROC"],
  ["average_precision", "Ranking: average precision"],
  ["precision_at_count", "Right among as many as are wrong"],
  ["issue_precision", "Label issues that are wrong labels"],
  ["issue_recall", "Wrong labels among the label issues"],
];

/** A section, or null for a job without injected noise. */
export function selfTest(job) {
  const found = job.metrics?.self_test;
  if (!found) return null;
  const known = FIGURES.filter(([name]) => typeof found[name] === "number");
  return h("section", { "aria-label": "Self-test" },
    h("h3", {}, "Self-test"),
    h("p", { class: "quiet" }, `${words(found.noise)} noise made ${percent(found.realised_rate)} of the labels wrong. All figures here are by the labels before it.`),
    h("dl", { class: "figures" }, known.map(([name, title]) => h("div", {}, h("dd", {}, percent(found[name])), h("dt", {}, title)))));
}
