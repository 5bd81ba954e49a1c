/** How a program asks a model: curl, Python, and a picture in a page. */

import { html } from "htm/preact";

export function Snippets({ model }) {
  const address = `${location.origin}/predict?model=${model}`;
  const texts = [
    ["curl", `curl -H 'Content-Type: image/jpeg' --data-binary @picture.jpg '${address}'`],
    ["Python", `import httpx\n\nanswer = httpx.post(\n    "${address}",\n    content=open("picture.jpg", "rb").read(),\n    headers={"Content-Type": "image/jpeg"},\n)\nprint(answer.json()["predictions"][0]["label"])`],
    ["HTML", `<img src="${address}&image=dataset:ID/0&format=overlay">`],
  ];
  return html`<section class="panel" aria-label="Use it in a program"><h2>Use it in a program</h2>
    ${texts.map(([name, text]) => html`<div><h3>${name}</h3><pre class="snippet" tabindex="0" aria-label=${name}><code>${text}</code></pre></div>`)}
  </section>`;
}
