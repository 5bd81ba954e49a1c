/** How well a job with injected noise did, by the labels before the injection. */

import { h } from "./dom.js";
import { percent, words } from "./format.js";
import { show } from "./problems.js";

const FIGURES = [
  ["held_out_accuracy", "Accuracy on held-out images"],
  ["memorised", "Wrong labels learned by heart (memorised)"],
  ["estimated_rate", "Labels estimated to be wrong (noise rate)"],
  ["auroc", "Chance that a wrong label is ranked before a right one (AUROC)"],
  ["average_precision", "How clear the top of the ranking is of right labels, on average (average precision)"],
  ["precision_at_count", "Wrong labels among the top N of the ranking, where N are wrong in all (R-precision)"],
  ["issue_precision", "Flagged labels that are wrong (precision)"],
  ["issue_recall", "Wrong labels that are flagged (recall)"],
];
const FILES = [["self-test.json", "Save as JSON", "the self-test"], ["injected-labels.csv", "Save the changed labels as CSV"]];

/** A promise of a section, or of null for a job without injected noise. */
export async function selfTest(job, files) {
  const result = job.metrics?.self_test;
  if (!result) return null;
  const available = FIGURES.filter(([name]) => typeof result[name] === "number");
  const problem = h("div", {});
  const saves = await files.buttons(FILES, problem).catch((error) => show(problem, error));
  return h("section", { "aria-label": "Self-test" },
    h("h2", {}, "Self-test"),
    h("p", { class: "quiet" }, `${words(result.noise)} noise made ${percent(result.realised_rate)} of the labels wrong. All figures here are by the labels before it.`),
    h("dl", { class: "figures" }, available.map(([name, title]) => h("div", {}, h("dd", {}, percent(result[name])), h("dt", {}, title)))),
    saves, problem);
}
