/** What a finished job found: its figures, and the comparison with its baselines. */

import { get, imageAddress } from "./api.js";
import { catalog, methodTitle } from "./catalog.js";
import { fill, h } from "./dom.js";
import { duration, number, percent, short, words } from "./format.js";
import { show } from "./problems.js";

const MAIN = [
  ["test_accuracy.last", "Test accuracy, last epoch"],
  ["test_accuracy.best_test", "Test accuracy, at its peak"],
  ["clean_validation_accuracy", "Accuracy on held-out images, true labels"],
  ["noisy_validation_accuracy", "Noisy validation accuracy"],
  ["test_calibration_error", "Calibration error"],
  ["background_reliance", "Background reliance"],
  ["estimated_noise_rate", "Estimated noise rate"],
  ["label_issues", "Label issues"],
  ["train_seconds", "Training time"],
];
const SHARES = /accuracy|^self_test|reliance|noise_rate|calibration|precision|auroc|\.last$|\.best$|\.best_noisy_val$|\.best_test$|mean_last/;

/** The figures that matter, large; all of them on request. What is not known is not shown. */
export function figures(job) {
  const found = new Map(flat(job.metrics || {}));
  if (!found.size) return null;
  const main = MAIN.filter(([name]) => found.has(name));
  return h("section", { "aria-label": "Figures" },
    h("dl", { class: "figures" }, main.map(([name, title]) => h("div", {}, h("dd", {}, shown(name, found.get(name))), h("dt", {}, title)))),
    h("details", { class: "more" }, h("summary", {}, "All figures"),
      h("dl", { class: "facts" }, [...found].map(([name, value]) => [h("dt", {}, words(name.replaceAll(".", ", "))), h("dd", {}, shown(name, value))]))));
}

const PLOTS = [
  ["backgrounds", "How much the answers owe to the background: correlation of what the network sees, and accuracy before other backgrounds"],
  ["reliance", "Background reliance: how far each prediction moves when the background is replaced"],
  ["attention", "Where the network looks: Grad-CAM"],
  ["losses", "Losses of right and wrong labels"],
  ["confusion", "Answers by label"],
  ["reliability", "How often answers are right that are so sure"],
  ["transition", "Estimated noise between classes"],
];

/** The plots among a finished job's artifacts, behind a fold: no picture is asked for before it opens. */
export function plots(job) {
  const place = h("div", {});
  const details = h("details", { class: "more plots", on: { toggle: open } }, h("summary", {}, "Plots"), place);
  let asked = false;

  async function open() {
    if (asked || !details.open) return;
    asked = true;
    try {
      fill(place, await drawn(`/jobs/${job.id}/artifacts`));
    } catch (error) {
      asked = false;
      show(place, error);
    }
  }
  return details;
}

async function drawn(path) {
  const names = new Set((await get(`${path}?limit=100`)).items.map((each) => each.name));
  const found = PLOTS.filter(([name]) => names.has(`figure-${name}.png`));
  if (!found.length) return h("p", { class: "quiet" }, "Nothing was drawn of this job.");
  const shownPlots = await Promise.all(found.map(async ([name, title]) =>
    h("figure", { class: "plot" }, h("img", { src: await imageAddress(`${path}/figure-${name}.png`), alt: title }), h("figcaption", {}, title))));
  return [h("div", { class: "plot-grid" }, shownPlots),
    h("p", { class: "quiet" }, "As PNG and SVG, with the numbers in figures.json, among the job's artifacts.")];
}

/** {a: {b: 1}} as [["a.b", 1]] */
function flat(metrics, prefix = "") {
  return Object.entries(metrics).flatMap(([name, value]) => {
    if (typeof value === "number") return [[prefix + name, value]];
    return value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${name}.`) : [];
  });
}

function shown(name, value) {
  if (/epochs?$/.test(name)) return number(value);
  if (name.endsWith("seconds")) return duration(value);
  return SHARES.test(name) ? percent(value) : short(value);
}

/** The job beside those trained on the same split, seed and epochs; nothing when it was trained alone. */
export async function comparison(job) {
  const rows = [job, ...(job.comparison || []).filter((each) => each.id !== job.id)];
  if (rows.length < 2) return null;
  const known = await catalog();
  return h("section", { "aria-label": "Comparison" },
    h("h3", {}, "Side by side"),
    h("ul", { class: "compare" }, rows.map((each) =>
      h("li", { class: each.id === job.id ? "own" : "", vars: { share: accuracy(each) ?? 0 } },
        h("span", { class: "compare-name" }, methodTitle(known, each.method, each.params || each.request?.params)), h("span", { class: "compare-bar" }),
        h("span", { class: "compare-value" }, accuracy(each) === null ? each.status : percent(accuracy(each)))))),
    h("p", { class: "quiet" }, "Test accuracy at the last epoch: same split, same seed, same number of epochs."));
}

const accuracy = (job) => job.metrics?.test_accuracy?.last ?? null;

/** Whether a job still waits for one it is compared with. */
export const comparisonOpen = (job) => (job.comparison || []).some((each) => !["succeeded", "failed", "cancelled"].includes(each.status));
