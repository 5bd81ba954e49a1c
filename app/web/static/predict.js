/** The section where a model is tried on pictures: from files, or from a data set. */

import { Problem, get, getItems, imageAddress, postFile } from "./api.js";
import { decoded } from "./decoded.js";
import { fill, h } from "./dom.js";
import { ago, percent } from "./format.js";
import { namesOf } from "./names.js";
import { predictionView } from "./prediction.js";
import { show } from "./problems.js";
import { dropZone } from "./upload.js";

const SAMPLES = 10;
const AT_ONCE = 4; // requests

/** Fills the panel; returns what ends it. */
export function predict() {
  const panel = document.getElementById("try-panel");
  const model = h("select", { id: "try-model", on: { change: () => (samples(), pictures.length && run(pictures)) } });
  const why = h("p", { class: "quiet", id: "default-reason" });
  const input = h("input", { id: "try-file", type: "file", accept: "image/*", multiple: true, on: { change: () => fromFiles([...input.files]) } });
  const drop = h("label", { class: "drop", for: "try-file" }, input,
    h("span", { class: "drop-text" }, h("strong", {}, "Choose pictures"), " ", h("span", {}, "or drop them here")));
  const strip = h("div", { class: "samples", hidden: true });
  const problem = h("div", {});
  const several = h("ol", { class: "tried", "aria-label": "Pictures", hidden: true });
  const view = predictionView();
  const waiting = h("p", { class: "empty" }, "A model appears here when a job has succeeded.");
  const body = h("div", { hidden: true },
    h("div", { class: "fields" }, h("div", { class: "field wide" }, h("label", { for: "try-model" }, "Model"), model, why)), drop, strip);
  let models = [];
  let names = null; // of them
  let byDefault = null; // id of the model behind `default`
  let pictures = []; // those tried last: {name, ask(): the answer, address(): of the picture}
  let latest = 0;

  fill(panel, waiting, body, problem, several, view.element);
  dropZone(drop, (files) => fromFiles([...files]));

  const modelName = (entry) => [names.title(entry), entry.network, ago(entry.created_at)].filter(Boolean).join(" · ");

  async function refresh() {
    try {
      models = (await getItems("/models")).items;
      names = await namesOf(models);
      const before = model.value || new URLSearchParams(location.search).get("model");
      const follows = models.length ? await get("/aliases/default") : null;
      byDefault = follows?.model_id;
      why.textContent = follows ? sayWhy(follows, models, modelName) : "";
      fill(model, h("option", { value: "default" }, "default"),
        models.map((entry) => h("option", { value: entry.id }, modelName(entry))));
      model.value = models.some((entry) => entry.id === before) ? before : "default";
      waiting.hidden = models.length > 0;
      body.hidden = models.length === 0;
      show(problem, null);
      await samples();
    } catch (error) {
      show(problem, error);
    }
  }

  /** A few test pictures of the data set the model learned from. */
  async function samples() {
    const chosen = models.find((entry) => entry.id === (model.value === "default" ? byDefault : model.value));
    if (strip.dataset.of === chosen?.dataset_id) return;
    strip.hidden = true;
    strip.dataset.of = chosen?.dataset_id;
    if (!chosen?.dataset_id) return;
    try {
      const of = `/datasets/${chosen.dataset_id}`;
      const page = await get(`${of}/images?split=test&limit=${SAMPLES}`);
      const buttons = await Promise.all(page.items.map((entry) => sample(of, chosen.dataset_id, entry)));
      fill(strip, h("p", { class: "quiet" }, "or one of its test pictures"), buttons);
      strip.hidden = !page.items.length;
    } catch {
      strip.hidden = true; // the data set may be gone; the model works without it
    }
  }

  async function sample(of, datasetId, entry) {
    const picture = h("img", { src: await imageAddress(`${of}/images/${entry.index}/thumbnail`), alt: `Test picture ${entry.index}`, width: 56, height: 56, loading: "lazy" });
    return h("button", { type: "button", class: "sample", on: { click: () => fromDataset(of, datasetId, entry.index) } }, picture);
  }

  function fromFiles(files) {
    if (files.length) run(files.map((file) => ({ name: file.name, ask: () => postFile(`/predict?${query()}`, file), address: () => URL.createObjectURL(file) })));
    input.value = "";
  }

  function fromDataset(of, datasetId, index) {
    const reference = encodeURIComponent(`dataset:${datasetId}/${index}`);
    run([{ name: `picture ${index}`, ask: () => get(`/predict?image=${reference}&${query()}`), address: () => imageAddress(`${of}/images/${index}`) }]);
  }

  const query = () => new URLSearchParams({ model: model.value, top_k: 5, masks: "gaussian,map" });

  /** Ask for each picture, a few at a time, and show the first; only the pictures tried last are shown, in whatever order answers arrive. */
  async function run(chosen) {
    pictures = chosen;
    latest += 1;
    const mine = latest;
    panel.classList.add("busy");
    show(problem, null);
    several.hidden = chosen.length < 2;
    const places = chosen.map(({ name }) => h("li", {}, h("button", { type: "button", class: "tried-item", disabled: true }, h("span", { class: "tried-label" }, name))));
    fill(several, places);

    const waitingFor = chosen.map((picture, place) => ({ picture, place }));
    async function next() {
      for (let entry = waitingFor.shift(); entry && mine === latest; entry = waitingFor.shift()) {
        const result = await tried(entry.picture);
        if (mine !== latest) return;
        const button = places[entry.place].firstChild;
        fill(button, result.image, h("span", { class: "tried-label" }, result.error ? "–" : result.prediction.abstained ? "not sure" : result.prediction.label),
          h("span", { class: "quiet small" }, result.error ? result.error.message : percent(result.prediction.score)));
        button.title = entry.picture.name;
        button.disabled = false;
        button.addEventListener("click", () => open(result, button));
        if (entry.place === 0) open(result, button);
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, next));
    if (mine === latest) panel.classList.remove("busy");
  }

  function open({ name, image, prediction, answer, error }, button) {
    for (const other of several.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
    show(problem, error ?? null);
    if (error) view.element.hidden = true;
    else view.draw(prediction, image, answer, name);
  }

  const returned = () => !document.hidden && refresh();
  document.addEventListener("visibilitychange", returned); // a job may have published a model meanwhile
  refresh();
  return () => document.removeEventListener("visibilitychange", returned);
}

/** {name, image, prediction, answer}, or {name, error}. */
async function tried({ name, ask, address }) {
  try {
    const [answer, picture] = await Promise.all([ask(), address()]);
    const image = await decoded(picture);
    const [prediction] = answer.predictions;
    if (prediction.error) throw new Problem(prediction.error, prediction.error.status);
    return { name, image, prediction, answer };
  } catch (error) {
    return { name, error };
  }
}

/** One line: which model `default` is, and why it is that one, or why it is not the newest. */
function sayWhy({ model_id: id, pinned, reason, passed_over: passedOver }, models, modelName) {
  const entry = models.find((one) => one.id === id);
  const name = entry ? modelName(entry) : id;
  if (pinned) return `default is pinned to ${name}.`;
  const newest = passedOver?.reason ? ` It did not move to the newest model: ${passedOver.reason}.` : "";
  return `default is ${name}${reason && !newest ? `: ${reason}` : ""}.${newest}`;
}
