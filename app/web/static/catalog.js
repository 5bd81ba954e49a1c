/** What can be trained, as the service lists it: methods with their settings, and the settings every training has. */

import { get, getItems } from "./api.js";
import { words } from "./format.js";

const BASELINE = "ce"; // every cost is relative to it

let loading = null;

/** {methods: [{name, title, idea, paper, relative_cost, needs, rules, schema, presets: [{name, title, values}]}], spec, networks: [{name, summary, weights, published, add_weights}], noises: [{kind, summary}]}: the default method, the baseline, all others by title. */
export function catalog() {
  loading ??= load().catch((error) => {
    loading = null; // loaded again when there is a key or a network
    throw error;
  });
  return loading;
}

async function load() {
  const [listing, networks] = await Promise.all([get("/methods"), getItems("/networks")]);
  const standard = listing.spec.properties.method?.default;
  const first = ({ name }) => (name === standard ? 2 : Number(name === BASELINE));
  const methods = listing.items
    .map((entry) => ({ ...entry, title: entry.title || entry.name, presets: presets(entry.presets) }))
    .sort((a, b) => first(b) - first(a) || a.title.localeCompare(b.title));
  return { methods, spec: listing.spec, networks: networks.items, noises: listing.noises };
}

function presets(named) {
  return Object.entries(named || {}).map(([name, values]) => ({ name, title: words(name.replace(/\bcifar(?=\d)/g, "CIFAR-")), values }));
}

/** The preset that the service uses for a data set with these `facts` when a job has no params; undefined: the defaults. */
export function suited({ rules, presets: available }, facts) {
  const rule = rules.find((entry) => facts?.[entry.fact] < entry.below);
  return rule && available.find((entry) => entry.name === rule.preset);
}

/** A method with its settings in words: the largest preset that its params contain. */
export function methodTitle({ methods }, name, params = {}) {
  const method = methods.find((entry) => entry.name === name);
  if (!method) return name;
  const fits = method.presets
    .filter(({ values }) => Object.entries(values).every(([key, value]) => JSON.stringify(params[key]) === JSON.stringify(value)))
    .sort((a, b) => Object.keys(b.values).length - Object.keys(a.values).length);
  return fits.length && method.presets.length > 1 && Object.keys(fits[0].values).length ? presetTitle(method, fits[0]) : method.title;
}

const presetTitle = (method, preset) => `${method.title}, ${preset.name}`;
