/** The results of a finished job: its figures, plots, and the comparison with its baselines. */

import { get, imageAddress } from "./api.js";
import { catalog, methodTitle } from "./catalog.js";
import { chart } from "./curves.js";
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
  ["swapped_accuracy", "Accuracy with other backgrounds"],
  ["noisy_swapped_accuracy", "Noisy accuracy with other backgrounds"],
  ["estimated_noise_rate", "Estimated noise rate"],
  ["label_issues", "Label issues"],
  ["train_seconds", "Training time"],
  ["images_per_second", "Images a second"],
];
/** Explanations of figures whose names do not explain them. */
const NOTES = [
  ["background_reliance", "Background reliance: how far predictions move, on average, when what lies outside the middle (24/32 of the side) is replaced by that of another picture. 0 %: the model does not use it; 100 %: it uses nothing else (mean total variation distance)."],
  ["noisy_swapped_accuracy", "Noisy accuracy is judged by the given labels, wrong ones among them."],
];
const SHARES = /accuracy|^self_test|reliance|noise_rate|calibration|precision|recall|auroc|\.last$|\.best$|\.best_noisy_val$|\.best_test$|mean_last/;

/** The main figures, large; all of them on request. Figures without a value are left out. */
export function figures(job) {
  const values = new Map(flat(job.metrics || {}));
  if (!values.size) return null;
  const main = MAIN.filter(([name]) => values.has(name));
  return h("section", { "aria-label": "Figures" },
    h("dl", { class: "figures" }, main.map(([name, title]) => h("div", {}, h("dd", {}, formatted(name, values.get(name))), h("dt", {}, title)))),
    NOTES.filter(([name]) => values.has(name)).map(([, note]) => h("p", { class: "quiet" }, note)),
    h("details", { class: "more" }, h("summary", {}, "All figures"),
      h("dl", { class: "facts" }, [...values].map(([name, value]) => [h("dt", {}, words(name.replaceAll(".", ", "))), h("dd", {}, formatted(name, value))]))));
}

const STAGES = [["test_accuracy", "test accuracy"], ["clean_validation_accuracy", "on held-out images, true labels"],
  ["noisy_validation_accuracy", "of held-out labels agree"], ["estimated_noise_rate", "of the labels estimated to be wrong"]];

/** The first answer of a job and what training made of it, and which of the two is the model; null without a first answer. */
export function stages({ stages: known, published, published_reason: reason } = {}) {
  if (!known) return null;
  return h("div", { class: "stages" },
    h("ul", {}, known.map((stage) => h("li", {}, h("strong", {}, words(stage.name)), ` after ${duration(stage.seconds)}: `,
      STAGES.filter(([name]) => typeof stage[name] === "number").map(([name, title]) => `${percent(stage[name])} ${title}`).join(", ")))),
    h("p", { class: "quiet" }, published ? `Published: ${published}, which ${reason}.` : "Training goes on; the better of the two becomes the model."));
}

const PLOTS = [
  ["backgrounds", "Correlation of the network's features of a picture with those of its middle alone and of its background alone; accuracy with other backgrounds"],
  ["reliance", "Background reliance: how far each prediction moves when what lies outside the middle is replaced"],
  ["attention", "Where the network looks: Grad-CAM"],
  ["losses", "Losses of right and wrong labels"],
  ["confusion", "Confusion matrix"],
  ["reliability", "Reliability: how often predictions are right, by their confidence"],
  ["transition", "Estimated noise between classes"],
];

/** The plots among a finished job's files, in a closed fold: they are loaded when it opens. */
export function plots(job, files) {
  const place = h("div", {});
  const details = h("details", { class: "more plots", on: { toggle: open } }, h("summary", {}, "Plots"), place);
  let loaded = false;

  async function open() {
    if (loaded || !details.open) return;
    loaded = true;
    try {
      fill(place, await drawn(job, files));
    } catch (error) {
      loaded = false;
      show(place, error);
    }
  }
  return details;
}

async function drawn(job, files) {
  const names = await files.names();
  const problem = h("div", {});
  const numbers = await files.buttons([["figures.json", "Save the numbers as JSON"], ["model.zip", "Save the model", "as a zip"]], problem);
  const available = PLOTS.filter(([name]) => names.has(`figure-${name}.png`));
  const figures = names.has("figures.json") && await get(`${files.path}/figures.json`);
  const read = figures && [reliability(figures), confused(job, figures)];
  if (!available.length) return [h("p", { class: "quiet" }, "This job has no plots."), read, numbers, problem];
  const drawings = await Promise.all(available.map(async ([name, title]) =>
    h("figure", { class: "plot" }, h("img", { src: await imageAddress(`${files.path}/figure-${name}.png`), alt: title }), h("figcaption", {}, title),
      await files.buttons(["PNG", "SVG"].map((kind) => [`figure-${name}.${kind.toLowerCase()}`, kind, `of ${title}`]), problem))));
  return [h("div", { class: "plot-grid" }, drawings), read, numbers, problem];
}

/** How often predictions are right at each confidence, to be read off by pointer or keys; null where none was measured. */
function reliability({ reliability: bins }) {
  const points = (bins ?? []).filter(({ count }) => count).map(({ confidence, accuracy: right }) => [confidence, right]);
  if (!points.length) return null;
  const { element, draw } = chart({ title: "Reliability", share: true, over: "confidence" });
  draw([{ title: "Right", points }, { title: "As often as confident", points: [[0, 0], ...points.map(([x]) => [x, x]), [1, 1]] }]);
  return h("div", { class: "charts" }, element);
}

/** The pairs of classes that the model takes for each other most often; each leads to its pictures, where those are test pictures. */
function confused(job, { of, classes, most_confused: pairs }) {
  if (!pairs?.length) return null;
  const text = ({ label, predicted, count }) => `${classes[label]} taken for ${classes[predicted]}: ${number(count)}`;
  const address = ({ label, predicted }) =>
    `/ui/datasets/${job.dataset_id}?${new URLSearchParams({ job: job.id, split: "test", label: classes[label], model: classes[predicted] })}`;
  const title = "Most often confused";
  return h("section", { "aria-label": title }, h("h3", {}, title),
    h("ol", { class: "entries", "aria-label": title }, pairs.map((pair) => h("li", {}, of === "test" && job.dataset_id ? h("a", { href: address(pair) }, text(pair)) : text(pair)))));
}

/** {a: {b: 1}} as [["a.b", 1]] */
function flat(metrics, prefix = "") {
  return Object.entries(metrics).flatMap(([name, value]) => {
    if (typeof value === "number") return [[prefix + name, value]];
    return value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${name}.`) : [];
  });
}

function formatted(name, value) {
  if (name.endsWith("_epoch")) return number(value);
  if (name.endsWith("epochs") || name === "images_per_second") return number(value);
  if (name.endsWith("seconds")) return duration(value);
  return SHARES.test(name) ? percent(value) : short(value);
}

/** The job and those trained on the same split, seed and epochs; null when it was trained alone. */
export async function comparison(job) {
  const rows = [job, ...(job.comparison || []).filter((entry) => entry.id !== job.id)];
  if (rows.length < 2) return null;
  const methods = await catalog();
  return h("section", { "aria-label": "Comparison" },
    h("h2", {}, "Side by side"),
    h("ul", { class: "compare" }, rows.map((entry) =>
      h("li", { class: entry.id === job.id ? "own" : "", vars: { share: accuracy(entry) ?? 0 } },
        h("span", { class: "compare-name" }, methodTitle(methods, entry.method, entry.params || entry.request?.params)), h("span", { class: "compare-bar" }),
        h("span", { class: "compare-value" }, accuracy(entry) === null ? entry.status : percent(accuracy(entry)))))),
    h("p", { class: "quiet" }, "Test accuracy at the last epoch: same split, same seed, same number of epochs."));
}

const accuracy = (job) => job.metrics?.test_accuracy?.last ?? null;

/** Whether a job that it is compared with has not ended. */
export const comparisonOpen = (job) => (job.comparison || []).some((entry) => !["succeeded", "failed", "cancelled"].includes(entry.status));
