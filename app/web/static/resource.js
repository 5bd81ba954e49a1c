/** What a view loads: data, what went wrong, and loading again. */

import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { show } from "./problems.js";

/** {data, problem, reload()}: the result of `load()`, loaded anew when one of `inputs` changes; the data stay until then. */
export function useResource(load, inputs) {
  const [state, setState] = useState({ data: null, problem: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let current = true;
    load().then(
      (data) => current && setState({ data, problem: null }),
      (problem) => current && setState((before) => ({ ...before, problem })),
    );
    return () => (current = false);
  }, [...inputs, turn]);
  return { ...state, reload: () => setTurn((before) => before + 1) };
}

/** The block of a problem, where there is one. */
export function ProblemBlock({ problem }) {
  const place = useRef(null);
  useEffect(() => show(place.current, problem), [problem]);
  return html`<div ref=${place}></div>`;
}

/** {busy, problem, run(action)}: one action at a time; what goes wrong is shown by the caller. */
export function useAction() {
  const [state, setState] = useState({ busy: false, problem: null });
  async function run(action) {
    setState({ busy: true, problem: null });
    try {
      await action();
      setState({ busy: false, problem: null });
    } catch (problem) {
      setState({ busy: false, problem });
    }
  }
  return { ...state, run };
}
