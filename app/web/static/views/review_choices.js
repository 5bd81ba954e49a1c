/** The labels that a picture may get: the suggested ones first, each with its number and probability; any other by its name. */

import { html } from "htm/preact";
import { useState } from "preact/hooks";

import { percent } from "../format.js";

const NUMBERED = 9;
const OFFERED = 6; // classes that fit what is typed

/** Names of the classes in the order of their keys: suggested ones first, then the others. */
export function choicesOf(item, classes) {
  const suggested = item.findings.suggestions.map(({ label }) => label);
  return [...suggested, ...classes.filter((name) => !suggested.includes(name))].slice(0, NUMBERED);
}

export function Choices({ item, choices, classes, decided, relabel, back }) {
  const scores = new Map(item.findings.suggestions.map(({ label, confidence }) => [label, confidence]));
  return html`<div class="choices">
    <p>Given label: <strong class=${decided && decided.action !== "confirmed" ? "given-label struck" : "given-label"}>${item.given_label}</strong><span class="suggested">${" "}Suggested: <strong>${item.findings.predicted_label}</strong></span>
      ${decided && html`${" "}<span class="status" data-status=${decided.action}>${decided.action}${decided.to ? `: ${decided.to}` : ""}</span>`}</p>
    <ol class="choice-list" aria-label="Labels">${choices.map((name, at) => html`<li key=${name}>
      <button type="button" class=${`choice ${at === 0 ? "first" : ""}`} aria-pressed=${decided?.to === name} onClick=${() => relabel(name)} style=${{ "--share": scores.get(name) ?? 0 }}>
        <kbd>${at + 1}</kbd><span class="choice-name">${name}</span><span class="choice-score">${scores.has(name) ? percent(scores.get(name), 0) : name === item.given_label ? "given" : ""}</span></button></li>`)}</ol>
    <${Search} classes=${classes} relabel=${relabel} back=${back} />
  </div>`;
}

/** Type-ahead: the class whose name begins with, or contains, what is typed. */
function Search({ classes, relabel, back }) {
  const [text, setText] = useState("");
  const typed = text.trim().toLowerCase();
  const matches = typed ? [...classes.filter((name) => name.toLowerCase().startsWith(typed)), ...classes.filter((name) => !name.toLowerCase().startsWith(typed) && name.toLowerCase().includes(typed))] : [];
  function key(event) {
    if (event.key === "Escape") setText(""), back();
    if (event.key !== "Enter" || !matches.length) return;
    event.preventDefault();
    choose(matches[0]);
  }
  function choose(name) {
    setText("");
    relabel(name);
  }
  return html`<div class="field class-search"><label for="class-search">Another class <kbd>/</kbd></label>
    <input id="class-search" type="text" autocomplete="off" spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${key} aria-describedby="class-match" />
    <p id="class-match" class="field-help" aria-live="polite">${typed ? (matches.length ? `Enter: ${matches[0]}${matches.length > 1 ? `, or ${matches.slice(1, 4).join(", ")}` : ""}` : "No class of this name") : " "}</p>
    ${matches.length > 0 && html`<ul class="choice-list" aria-label="Classes that fit">${matches.slice(0, OFFERED).map((name) => html`<li key=${name}><button type="button" class="choice" onClick=${() => choose(name)}><span class="choice-name">${name}</span></button></li>`)}</ul>`}</div>`;
}
