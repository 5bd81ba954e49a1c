/** What can be trained, as the service lists it: methods with their settings, and the settings every training has. */

import { get } from "./api.js";
import { words } from "./format.js";

const BASELINE = "ce"; // every cost is relative to it

let asked = null;

/** {methods: [{name, title, idea, paper, relative_cost, needs, rules, schema, presets: [{name, title, values}]}], spec, networks, noises: [{kind, summary}]}: the default method, the baseline, all others by title. */
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
  const first = ({ name }) => (name === standard ? 2 : Number(name === BASELINE));
  const methods = answer.items
    .map((each) => ({ ...each, title: each.title || each.name, presets: presets(each.presets) }))
    .sort((a, b) => first(b) - first(a) || a.title.localeCompare(b.title));
  return { methods, spec: answer.spec, networks: answer.networks.map((each) => each.name), noises: answer.noises };
}

function presets(named) {
  return Object.entries(named || {}).map(([name, values]) => ({ name, title: words(name.replace(/\bcifar(?=\d)/g, "CIFAR-")), values }));
}

/** The preset that the service takes for a data set whose `facts` are these when a job says nothing of settings; undefined: the defaults. */
export function suited({ rules, presets: known }, facts) {
  const rule = rules.find((each) => facts?.[each.fact] < each.below);
  return rule && known.find((each) => each.name === rule.preset);
}

/** A method and its settings in words: the preset that says most of what they are. */
export function methodTitle({ methods }, name, params = {}) {
  const method = methods.find((each) => each.name === name);
  if (!method) return name;
  const fits = method.presets
    .filter(({ values }) => Object.entries(values).every(([key, value]) => JSON.stringify(params[key]) === JSON.stringify(value)))
    .sort((a, b) => Object.keys(b.values).length - Object.keys(a.values).length);
  return fits.length && method.presets.length > 1 && Object.keys(fits[0].values).length ? presetTitle(method, fits[0]) : method.title;
}

const presetTitle = (method, preset) => `${method.title}, ${preset.name}`;
