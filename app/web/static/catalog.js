/** What can be trained, as the service lists it: methods with their settings, and the settings every training has. */

import { get } from "./api.js";
import { words } from "./format.js";

let asked = null;

/** {methods: [{name, title, idea, paper, relative_cost, schema, presets: [{name, title, values}]}], spec, networks}, the default method first. */
export function catalog() {
  asked ??= load().catch((error) => {
    asked = null; // asked for again when there is a key, or a network
    throw error;
  });
  return asked;
}

async function load() {
  const answer = await get("/methods");
  const standard = answer.spec.properties.method?.default;
  const methods = answer.items
    .map((each) => ({ ...each, title: each.title || each.name, presets: presets(each.presets) }))
    .sort((a, b) => (b.name === standard) - (a.name === standard));
  return { methods, spec: answer.spec, networks: answer.networks.map((each) => each.name) };
}

function presets(named) {
  return Object.entries(named || {}).map(([name, values]) => ({ name, title: words(name), values }));
}

/** A method and its settings in words: the preset that says most of what they are. */
export function methodTitle({ methods }, name, params = {}) {
  const method = methods.find((each) => each.name === name);
  if (!method) return name;
  const fits = method.presets
    .filter(({ values }) => Object.entries(values).every(([key, value]) => params[key] === value))
    .sort((a, b) => Object.keys(b.values).length - Object.keys(a.values).length);
  return fits.length && method.presets.length > 1 && Object.keys(fits[0].values).length ? presetTitle(method, fits[0]) : method.title;
}

export const presetTitle = (method, preset) => `${method.title}, ${preset.title.toLowerCase()}`;
