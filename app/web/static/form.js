/**
 * Form fields from a description (schema.js). An empty field is "chosen for you": it is not sent, and shows the value
 * the service would take. Knows nothing of jobs or methods.
 */

import { fill, h, uniqueId } from "./dom.js";
import { plain } from "./format.js";

/** A form control, with `notes` on its options if the field has any: {path, element, read(), suggest(value), fail(text)}; read() gives undefined when left to the service. */
export function control(field, changed) {
  if (field.kind === "group") return group(field, changed);
  const made = { choice, boolean, integer: numeric, number: numeric }[field.kind] || text;
  const id = uniqueId("field");
  const help = (field.help || field.notes) && h("p", { class: "field-help", id: `${id}-help` }, prose(field.help));
  const inner = made(field, id, () => {
    fail("");
    if (field.notes) fill(help, prose(field.notes[inner.input.value] || field.help));
    changed();
  });
  const error = h("p", { class: "field-error", id: `${id}-error` });
  inner.input.setAttribute("aria-describedby", `${id}-help ${id}-error`);
  inner.input.setAttribute("name", field.path.join("."));
  function fail(message) {
    error.textContent = message;
    if (message) inner.input.setAttribute("aria-invalid", "true");
    else inner.input.removeAttribute("aria-invalid");
  }
  const label = h("label", { for: id }, field.label);
  const element = field.kind === "boolean"
    ? h("div", { class: "field check" }, inner.input, label, help, error)
    : h("div", { class: "field" }, label, inner.input, inner.examples, help, error);
  return { ...inner, path: field.path, element, fail };
}

function group(field, changed) {
  const controls = field.fields.map((item) => control(item, changed));
  const element = h("fieldset", { class: "field-group" },
    h("legend", {}, field.label),
    field.help && h("p", { class: "field-help" }, prose(field.help)),
    h("div", { class: "fields" }, controls.map((item) => item.element)));
  return { path: field.path, element, controls };
}

/** Every single field, those inside groups too. */
export function leaves(controls) {
  return controls.flatMap((item) => (item.controls ? leaves(item.controls) : [item]));
}

/** What the user has chosen, as nested JSON. */
export function read(controls) {
  const body = {};
  for (const item of leaves(controls)) {
    const value = item.read();
    if (value === undefined) continue;
    let place = body;
    for (const key of item.path.slice(0, -1)) place = place[key] ??= {};
    place[item.path.at(-1)] = value;
  }
  return body;
}

/** Show the service's values in the fields that were left to it. */
export function suggest(controls, values) {
  for (const item of leaves(controls)) item.suggest(item.path.reduce((place, key) => place?.[key], values));
}

/** Put errors beside their fields; returns those that belong to none. */
export function fail(controls, errors) {
  const all = leaves(controls);
  for (const item of all) item.fail("");
  const rest = errors.filter((error) => {
    const owner = all.find((item) => error.pointer === "/" + item.path.join("/"));
    owner?.fail(error.detail);
    return !owner;
  });
  const first = all.find((item) => item.input.getAttribute("aria-invalid"));
  first?.input.closest("details")?.setAttribute("open", "");
  first?.input.focus();
  return rest;
}

/** Names between back quotes as code. */
const prose = (help) => help.split("`").map((part, place) => (place % 2 ? h("code", {}, part) : part));

const listOptions = (values) => values.map((item) => h("option", { value: item }, String(item)));

/** A select; its options stand in `groups` ({title, options}) if the field has any. */
function choice(field, id, changed) {
  const automatic = h("option", { value: "" }, field.nullable ? "none" : "auto");
  const input = h("select", { id, on: { change: changed } },
    automatic, field.groups ? field.groups.map(({ title, options }) => h("optgroup", { label: title }, listOptions(options))) : listOptions(field.options));
  return {
    input,
    read: () => field.options.find((item) => String(item) === input.value),
    suggest: (value) => fill(automatic, value === undefined || value === null ? "none" : value === "auto" ? value : `${value} (auto)`),
  };
}

function boolean(field, id, changed) {
  let touched = false;
  const input = h("input", { id, type: "checkbox", checked: field.fallback === true, on: { change: () => ((touched = true), changed()) } });
  return {
    input,
    read: () => (touched ? input.checked : undefined),
    suggest: (value) => !touched && typeof value === "boolean" && (input.checked = value),
  };
}

function numeric(field, id, changed) {
  const input = h("input", {
    id, type: "number", inputmode: field.kind === "integer" ? "numeric" : "decimal", step: field.kind === "integer" ? 1 : "any",
    min: field.minimum, max: field.maximum, placeholder: placeholder(field.fallback), on: { input: changed },
  });
  const examples = field.examples && h("datalist", { id: `${id}-examples` }, listOptions(field.examples));
  if (examples) input.setAttribute("list", examples.id);
  return {
    input,
    examples,
    read: () => (input.value === "" ? undefined : input.valueAsNumber),
    suggest: (value) => (input.placeholder = placeholder(value)),
  };
}

/** Text, lists (separated by commas) and, as a last resort, JSON. */
function text(field, id, changed) {
  const asText = (value) => (field.kind === "json" && typeof value === "object" && value !== null ? JSON.stringify(value) : placeholder(value));
  const input = h("input", { id, type: "text", autocomplete: "off", spellcheck: "false", placeholder: asText(field.fallback), on: { input: changed } });
  return {
    input,
    read: () => (input.value.trim() === "" ? undefined : parse(field, input.value.trim())),
    suggest: (value) => (input.placeholder = asText(value)),
  };
}

function parse(field, value) {
  if (field.kind === "text") return value;
  if (field.kind === "list") {
    const items = value.split(",").map((item) => item.trim()).filter(Boolean);
    return field.of === "integer" || field.of === "number" ? items.map(Number) : items;
  }
  try {
    return JSON.parse(value);
  } catch {
    return value; // the service says what is wrong with it
  }
}

const placeholder = (value) => (value === undefined || value === null ? "" : typeof value === "number" ? String(Number(value.toPrecision(4))) : plain(value));
