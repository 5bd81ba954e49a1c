/** What a finished job found: its figures, and the comparison with its baselines. */

import { imageAddress } from "./api.js";
import { catalog, methodTitle } from "./catalog.js";
import { fill, h } from "./dom.js";
import { duration, number, percent, short, words } from "./format.js";
import { show } from "./problems.js";

const MAIN = [
  ["test_accuracy.last", "Test accuracy, last epoch"],
  ["test_accuracy.best_noisy_val", "Test accuracy, at the best noisy-validation epoch"],
  ["clean_validation_accuracy", "Accuracy on held-out images, true labels"],
  ["noisy_validation_accuracy", "Noisy validation accuracy"],
  ["test_calibration_error", "Calibration error"],
  ["background_reliance", "Background reliance"],
  ["swapped_accuracy", "Accuracy before other backgrounds"],
  ["noisy_swapped_accuracy", "Noisy accuracy before other backgrounds"],
  ["estimated_noise_rate", "Estimated noise rate"],
  ["label_issues", "Label issues"],
  ["train_seconds", "Training time"],
];
/** What a data owner cannot guess. */
const NOTES = [
  ["background_reliance", "Background reliance: how far answers move, on average, when what lies outside the middle (24/32 of the side) is replaced by another picture's. 0 %: the model does not look there; 100 %: it looks at nothing else (mean total variation distance)."],
  ["noisy_swapped_accuracy", "Noisy accuracy is judged by the given labels, wrong ones among them."],
];
const SHARES = /accuracy|^self_test|reliance|noise_rate|calibration|precision|recall|auroc|\.last$|\.best$|\.best_noisy_val$|\.best_test$|mean_last/;

/** The figures that matter, large; all of them on request. What is not known is not shown. */
export function figures(job) {
  const found = new Map(flat(job.metrics || {}));
  if (!found.size) return null;
  const main = MAIN.filter(([name]) => found.has(name));
  return h("section", { "aria-label": "Figures" },
    h("dl", { class: "figures" }, main.map(([name, title]) => h("div", {}, h("dd", {}, shown(name, found.get(name))), h("dt", {}, title)))),
    NOTES.filter(([name]) => found.has(name)).map(([, note]) => h("p", { class: "quiet" }, note)),
    h("details", { class: "more" }, h("summary", {}, "All figures"),
      h("dl", { class: "facts" }, [...found].map(([name, value]) => [h("dt", {}, words(name.replaceAll(".", ", "))), h("dd", {}, shown(name, value))]))));
}

const PLOTS = [
  ["backgrounds", "How alike the network sees a whole picture and its middle, or what lies outside it, alone (correlation); and accuracy before other backgrounds"],
  ["reliance", "Background reliance: how far each answer moves when what lies outside the middle is replaced"],
  ["attention", "Where the network looks: Grad-CAM"],
  ["losses", "Losses of right and wrong labels"],
  ["confusion", "Answers by label"],
  ["reliability", "How often answers are right that are so sure"],
  ["transition", "Estimated noise between classes"],
];

/** The plots among a finished job's files, behind a fold: no picture is asked for before it opens. */
export function plots(files) {
  const place = h("div", {});
  const details = h("details", { class: "more plots", on: { toggle: open } }, h("summary", {}, "Plots"), place);
  let asked = false;

  async function open() {
    if (asked || !details.open) return;
    asked = true;
    try {
      fill(place, await drawn(files));
    } catch (error) {
      asked = false;
      show(place, error);
    }
  }
  return details;
}

async function drawn(files) {
  const names = await files.names();
  const problem = h("div", {});
  const numbers = await files.buttons([["figures.json", "Save the numbers as JSON"]], problem);
  const found = PLOTS.filter(([name]) => names.has(`figure-${name}.png`));
  if (!found.length) return [h("p", { class: "quiet" }, "Nothing was drawn of this job."), numbers, problem];
  const shownPlots = await Promise.all(found.map(async ([name, title]) =>
    h("figure", { class: "plot" }, h("img", { src: await imageAddress(`${files.path}/figure-${name}.png`), alt: title }), h("figcaption", {}, title),
      await files.buttons(["PNG", "SVG"].map((kind) => [`figure-${name}.${kind.toLowerCase()}`, kind, `of ${title}`]), problem))));
  return [h("div", { class: "plot-grid" }, shownPlots), numbers, problem];
}

/** {a: {b: 1}} as [["a.b", 1]] */
function flat(metrics, prefix = "") {
  return Object.entries(metrics).flatMap(([name, value]) => {
    if (typeof value === "number") return [[prefix + name, value]];
    return value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${name}.`) : [];
  });
}

function shown(name, value) {
  if (name.endsWith("_epoch")) return number(value + 1); // counted from 0 there, from 1 wherever people look
  if (name.endsWith("epochs")) return number(value);
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
