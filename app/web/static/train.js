/** The training form, generated from `GET /methods`: a new method, network or setting appears by itself. */

import { getItems, idempotencyKey, post } from "./api.js";
import { catalog } from "./catalog.js";
import { checks, radios } from "./choices.js";
import { announce, fill, h, write } from "./dom.js";
import { bytes, duration, number, plural } from "./format.js";
import { control, fail, leaves, read, suggest } from "./form.js";
import { presetPicker } from "./preset.js";
import { show } from "./problems.js";
import { fieldsOf } from "./schema.js";

const BASIC = ["epochs", "batch_size", "image_size", "network", "pretrained", "seed"];
const ELSEWHERE = ["method", "params", "dataset_id", "compare_with"]; // these have controls of their own
/** What a request says besides the training itself. */
const ORDER = {
  properties: {
    name: { type: "string", description: "Shown in the list of jobs." },
    priority: { enum: ["low", "normal", "high"], description: "high overtakes jobs that wait, not those that run." },
    limits: { type: "object", properties: { max_seconds: { type: "integer", minimum: 1, description: "The job fails when its training takes longer." } } },
  },
};
const PROMINENT = 2; // methods with a card; all others are lines
const REFRESH_MS = 15000; // of the list of data sets
const ESTIMATE_DELAY_MS = 400; // the estimate is requested after a pause in typing

/** Fills the form; `chosen` is the id of the data set to begin with, `started(job)` is called with a new job. Returns what ends it. */
export function train({ chosen, started }) {
  const form = document.getElementById("train-form");
  const closing = new AbortController();
  catalog().then((known) => closing.signal.aborted || trainingForm(form, known, chosen, started, closing.signal)).catch((error) => show(form, error));
  return () => closing.abort();
}

function trainingForm(form, { methods, spec, networks, noises }, chosen, started, signal) {
  const dataset = datasetPicker(chosen, changed, signal);
  const common = [...fieldsOf(spec, { skip: ELSEWHERE }), ...fieldsOf(ORDER)].map((field) => control(listed(field, networks, noises), changed));
  const isBasic = (entry) => BASIC.includes(entry.path[0]);
  const options = methods.map((entry) => ({ value: entry.name, title: entry.title, text: entry.idea, note: cost(entry) }));
  const picker = radios({
    legend: "Method", style: "cards", changed: methodChosen, options: options.slice(0, PROMINENT),
    more: { title: plural(options.length - PROMINENT, "more method"), style: "lines", options: options.slice(PROMINENT) },
  });
  const presetPlace = h("div", {});
  const comparePlace = h("div", {});
  const paramsPlace = h("div", {});
  const estimate = h("p", { class: "estimate", "aria-live": "polite" });
  const problem = h("div", {});
  const start = h("button", { class: "primary", disabled: true }, "Start training");
  let preset = null;
  let compare = null;
  let params = [];
  let timer = 0;
  let last = { body: "", key: "" };

  fill(form,
    dataset.element, picker.element, presetPlace,
    h("div", { class: "fields basic" }, BASIC.map((name) => common.find((entry) => entry.path[0] === name)?.element)),
    comparePlace,
    h("details", { class: "more" }, h("summary", {}, "More settings"),
      h("div", { class: "fields" }, common.filter((entry) => !isBasic(entry) && !entry.controls).map((entry) => entry.element)),
      common.filter((entry) => entry.controls).map((entry) => entry.element),
      paramsPlace),
    h("div", { class: "actions" }, start, estimate), problem);

  function methodChosen() {
    const method = methods.find((entry) => entry.name === picker.value());
    const others = methods.filter((entry) => entry !== method);
    preset = presetPicker(method, changed);
    compare = checks({
      legend: "Compare with", help: "Trained on the same split and seed, with the settings that the service chooses.", changed,
      options: others.map((entry) => ({ value: entry.name, title: entry.title })),
    });
    params = fieldsOf(method.schema, { path: ["params"] }).map((field) => control(field, changed));
    const single = params.filter((entry) => !entry.controls);
    fill(presetPlace, preset.element);
    fill(comparePlace, others.length > 0 && compare.element);
    fill(paramsPlace, params.length > 0 && h("fieldset", { class: "field-group" },
      h("legend", {}, `Settings of ${method.title}`),
      method.paper && h("p", { class: "field-help" }, method.paper),
      h("div", { class: "fields" }, single.map((entry) => entry.element)),
      params.filter((entry) => entry.controls).map((entry) => entry.element)));
    changed();
  }

  function request() {
    const body = { dataset_id: dataset.value(), method: picker.value(), ...read(common) };
    const settings = preset.settings(read(params).params);
    if (settings) body.params = settings;
    if (compare.values().length) body.compare_with = compare.values();
    return body;
  }

  function changed() {
    clearTimeout(timer);
    preset.update(dataset.facts());
    start.disabled = !dataset.value();
    timer = setTimeout(dryRun, ESTIMATE_DELAY_MS);
  }

  /** The grey values and the estimate. What the browser itself finds wrong is not sent. */
  async function dryRun() {
    if (!dataset.value()) return write(estimate, "A data set that is ready comes first.");
    if (!form.checkValidity()) return write(estimate, "");
    const draft = request();
    try {
      const answer = await post("/jobs?dry_run=true", draft);
      if (JSON.stringify(draft) !== JSON.stringify(request())) return undefined;
      suggest([...common, ...params], answer.request);
      write(estimate, estimateText(answer));
      show(problem, null);
      fail([...common, ...params], []);
    } catch (error) {
      refused(error);
    }
    return undefined;
  }

  function refused(error) {
    write(estimate, "");
    show(problem, error, fail([...common, ...params], error.errors || []));
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!browserAgrees([...common, ...params])) return;
    const body = request();
    if (JSON.stringify(body) !== last.body) last = { body: JSON.stringify(body), key: idempotencyKey() };
    start.disabled = true;
    try {
      const job = await post("/jobs", body, { "Idempotency-Key": last.key });
      last = { body: "", key: "" };
      show(problem, null);
      announce("The job is queued");
      started(job);
    } catch (error) {
      refused(error);
    } finally {
      start.disabled = !dataset.value();
    }
  }, { signal });
  methodChosen();
}

/** A field whose options the catalog lists or describes. */
function listed(field, networks, noises) {
  if (field.name === "network") return networkField(field, networks);
  if (field.name !== "noise") return field;
  const notes = Object.fromEntries(noises.map((entry) => [entry.kind, entry.summary]));
  return { ...field, fields: field.fields.map((entry) => (entry.name === "kind" ? { ...entry, notes, help: "Which labels become wrong." } : entry)) };
}

/** The networks, those with installed weights first; below the field, what the chosen one is and how it gets weights. */
function networkField(field, networks) {
  const names = (entries) => entries.map((entry) => entry.name);
  const groups = [
    { title: "Pretrained weights installed", options: names(networks.filter((entry) => entry.weights)) },
    { title: "Without weights", options: names(networks.filter((entry) => !entry.weights)) },
  ];
  const notes = Object.fromEntries(networks.map((entry) => [entry.name, `${entry.summary} ${weightsNote(entry)}`.trim()]));
  return { ...field, kind: "choice", options: names(networks), groups: groups.filter(({ options }) => options.length), notes };
}

function weightsNote({ weights, add_weights: command }) {
  if (weights) return `Weights: ${weights.source}; licence ${weights.licence}; trained at ${weights.image_size} px.`;
  return command ? `\`${command}\` installs its pretrained weights.` : "";
}

/** Show the browser's own messages beside fields whose values are out of bounds. */
function browserAgrees(controls) {
  const wrong = leaves(controls).filter((entry) => !entry.input.checkValidity());
  fail(controls, wrong.map((entry) => ({ pointer: "/" + entry.path.join("/"), detail: entry.input.validationMessage })));
  return wrong.length === 0;
}

/**
 * Offers every ready data set, newest first. At first the one with the id `first` is chosen, else the newest; after that only the
 * user changes the choice, and when the chosen one is deleted none is chosen.
 */
function datasetPicker(first, changed, signal) {
  const input = h("select", { id: "train-dataset", name: "dataset_id", disabled: true, on: { change: changed } });
  let ready = [];
  let listed = null;
  let hadChoice = false;
  let timer = 0;

  async function refresh() {
    clearTimeout(timer);
    const all = document.hidden ? null : await getItems("/datasets?status=ready").catch(() => null); // asked for again later
    if (signal.aborted) return;
    timer = setTimeout(refresh, REFRESH_MS);
    const now = all?.items.map((entry) => entry.id).join();
    if (!all || now === listed) return;
    const choice = listed === null ? first : input.value;
    listed = now;
    offer(all.items, choice);
  }
  document.addEventListener("visibilitychange", refresh, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  refresh();

  function offer(datasets, id) {
    ready = datasets;
    const chosen = ready.find((entry) => entry.id === id) ?? (hadChoice ? undefined : ready[0]);
    hadChoice ||= chosen !== undefined;
    fill(input, !chosen && h("option", { value: "" }, "Choose a data set"), ready.map((entry) => h("option", { value: entry.id }, entry.name)));
    input.value = chosen?.id ?? "";
    input.disabled = !ready.length;
    changed();
  }
  const element = h("div", { class: "field wide" }, h("label", { for: "train-dataset" }, "Data set"), input);
  return { element, value: () => input.value, facts: () => ready.find((entry) => entry.id === input.value)?.facts };
}

const cost = (method) => `cost ${number(method.relative_cost, method.relative_cost % 1 ? 1 : 0)} ×`;

function estimateText({ estimate, warnings }) {
  if (!estimate) return "";
  const cost = costText(estimate);
  return [cost, ...warnings.map(({ detail, hint }) => `${detail} To avoid it, ${hint}.`)].join(" ");
}

function costText(estimate) {
  return `About ${duration(estimate.seconds)}${estimate.measured ? "" : ", roughly"} · ${bytes(estimate.memory_bytes)} of memory · ${bytes(estimate.disk_bytes)} on disk`;
}
