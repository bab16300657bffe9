"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const documents = data.rows.flatMap((row) => row.documents.map((doc, number) => ({ row, doc, number })));
const SHOWN = 500;
let matching = [], current = null, token = -1, chips = [];

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const nameOf = (item) => `row ${item.row.index} · document ${item.number}`;
const idOf = (item) => `row-${item.row.index}-doc-${item.number}`;
const textOf = (item) => item.text ??= item.doc.spans.flatMap((span) => span.tokens.map((t) => t.text)).join("");

function fillChoices() {
  const add = (id, values) => {
    for (const value of [...new Set(values)].sort()) $(id).append(element("option", { value }, value));
  };
  add("file", documents.map((item) => item.doc.file));
  add("role", documents.flatMap((item) => item.doc.spans.map((span) => span.role)));
  add("code", documents.flatMap((item) => item.row.chosen.split(", ")));
}

function matches(item) {
  const wanted = $("search").value.toLowerCase(), { doc, row } = item;
  return (!$("file").value || doc.file === $("file").value)
    && (!$("code").value || row.chosen.split(", ").includes($("code").value))
    && (!$("role").value || doc.spans.some((span) => span.role === $("role").value))
    && (!$("least").value || doc.num_tokens >= Number($("least").value))
    && (!$("most").value || doc.num_tokens <= Number($("most").value))
    && (!wanted || textOf(item).toLowerCase().includes(wanted) || doc.origin.toLowerCase().includes(wanted));
}

function update() {
  matching = documents.filter(matches);
  $("list").replaceChildren(...matching.slice(0, SHOWN).map(optionOf));
  const more = matching.length > SHOWN ? `, the first ${SHOWN} are listed` : "";
  $("shown").textContent = `${matching.length} of ${documents.length} documents${more}`;
  if (!matching.includes(current)) select(matching[0] || null);
  else mark();
}

function optionOf(item) {
  const why = item.row.chosen === "drawn" ? "" : ` · ${item.row.chosen}`;
  const option = element("li", { role: "option", id: `option-${idOf(item)}`, "aria-selected": "false" },
    element("b", {}, item.doc.origin),
    element("span", { class: "soft" },
      `${nameOf(item)} · ${item.doc.num_tokens} tokens, ${item.doc.num_trained} trained${why}`));
  option.addEventListener("click", () => select(item));
  return option;
}

// scrollIntoView would move the page too: what is selected must not take the reader from where they are.
function reveal(box, node) {
  const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
  box.scrollTop += Math.min(0, inner.top - outer.top) + Math.max(0, inner.bottom - outer.bottom);
}

function mark() {
  for (const option of $("list").children) {
    const own = current && option.id === `option-${idOf(current)}`;
    option.setAttribute("aria-selected", String(Boolean(own)));
    if (own) {
      $("list").setAttribute("aria-activedescendant", option.id);
      reveal($("list"), option);
    }
  }
}

function select(item) {
  current = item;
  token = -1;
  mark();
  $("sample").hidden = !item;
  if (!item) return;
  $("title").textContent = `${item.doc.origin} · ${nameOf(item)}`;
  $("counts").textContent = `${item.doc.num_tokens} tokens, ${item.doc.num_trained} trained · shown because: `
    + `${item.row.chosen} · in a terminal: sftprep audit ${data.directory} --row ${item.row.index}`;
  chips = [];
  $("text").replaceChildren(...item.doc.spans.map(spanOf));
  $("text").scrollTop = 0;
  show(0, false);
  fillTurns();
}

function spanOf(span) {
  const label = `${span.reason}${span.message >= 0 ? `, message ${span.message}` : ""}`;
  const node = element("span", { role: "group", "aria-label": label });
  for (const own of span.tokens) {
    const kinds = ["chip", own.trained ? "t" : "u", ...(own.special ? ["special"] : [])];
    const chip = element("span", { class: kinds.join(" ") }, own.shown.replaceAll("\n", "⏎\n"));
    const number = chips.push({ chip, own, span }) - 1;
    chip.addEventListener("mouseenter", () => show(number, false));
    chip.addEventListener("click", () => show(number, false));
    node.append(chip);
  }
  return node;
}

function show(number, spoken) {
  if (!chips.length) return;
  chips[token]?.chip.classList.remove("at");
  token = Math.max(0, Math.min(chips.length - 1, number));
  const { chip, own, span } = chips[token];
  chip.classList.add("at");
  if (spoken) chip.scrollIntoView({ block: "nearest" });
  const bytes = [...new TextEncoder().encode(own.text)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  const wide = [["why", span.reason], ["origin", span.origin], ["text", JSON.stringify(own.shown)], ["bytes", bytes]];
  const narrow = [["id", own.ids.join(" ")], ["label", own.trained ? own.ids.at(-1) : data.ignore_index],
    ["weight", own.weight], ["position", own.position], ["reason", span.kind], ["role", span.role],
    ["message", span.message < 0 ? "none" : span.message], ["document", current.number]];
  const fact = (kinds) => ([name, value]) => element("div", { class: name === "why" ? `why ${kinds}` : kinds },
    element("dt", {}, name), element("dd", {}, String(value)));
  $("detail").replaceChildren(...wide.map(fact("wide")), ...narrow.map(fact("narrow")));
  if (spoken) $("spoken").textContent = `${own.shown}, id ${own.ids.join(" ")}, ${span.reason}`;
}

function fillTurns() {
  const prompts = current.doc.prompts;
  $("turn").replaceChildren(...prompts.map((prompt, number) =>
    element("option", { value: number }, `message ${prompt.message}: ${prompt.state}`)));
  $("turns").hidden = !prompts.length;
  $("unproven").hidden = Boolean(prompts.length);
  const first = prompts.findIndex((prompt) => prompt.state !== "equal");
  if (prompts.length) $("turn").value = String(Math.max(first, 0));
  align();
}

function align() {
  const prompt = current?.doc.prompts[Number($("turn").value)];
  $("aligned").replaceChildren();
  if (!prompt) return;
  const told = { equal: `The row's ${prompt.num_tokens} tokens before the answer are those that a server sends.`,
    differing: `The first token that differs is number ${prompt.position}.`,
    unprovable: "The source is gone, or another, or its row cannot be rendered: unprovable." };
  $("verdict").textContent = told[prompt.state];
  const own = chips.filter(({ own }) => own.position < prompt.num_tokens).map(({ own }) => own);
  for (const [at, left, right] of pairs(own, prompt)) {
    const differs = prompt.state === "differing" && (at === prompt.position || at > prompt.position && left !== right);
    $("aligned").append(element("tr", differs ? { class: "diff" } : {}, element("td", {}, String(at)),
      element("td", {}, oneLine(left)), element("td", {}, oneLine(right))));
  }
  const first = document.querySelector("#aligned .diff");
  if (first) reveal(first.closest(".aligned"), first);
}

const oneLine = (text) => text.replaceAll("\n", "⏎").replaceAll(" ", "·");

function* pairs(own, prompt) {
  const same = prompt.state === "differing" ? own.filter((t) => t.position < prompt.position) : own;
  const server = prompt.state === "unprovable" ? () => "?" : (t) => t.shown;
  for (const t of same) yield [t.position, t.shown, server(t)];
  if (prompt.state !== "differing") return;
  const rest = own.slice(same.length), sent = prompt.server;
  for (let n = 0; n < Math.max(rest.length, sent.length); n++) {
    yield [prompt.position + n, rest[n]?.shown ?? "", sent[n] ?? ""];
  }
}

function step(by) {
  const at = matching.indexOf(current);
  if (matching.length) select(matching[Math.max(0, Math.min(matching.length - 1, at + by))]);
}

const KEYS = {
  j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
  Home: () => step(-matching.length), End: () => step(matching.length),
};
const TOKEN_KEYS = {
  ArrowRight: () => show(token + 1, true), ArrowLeft: () => show(token - 1, true),
  Home: () => show(0, true), End: () => show(chips.length - 1, true),
  n: () => show(chips.findIndex((c, n) => n > token && c.own.trained && !chips[n - 1]?.own.trained), true),
};

function pressed(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing) return;
  const own = document.activeElement === $("text") ? TOKEN_KEYS : document.activeElement === $("list") ? KEYS : {};
  const everywhere = { "/": () => $("search").focus(), t: () => $("text").focus(), l: () => $("list").focus(),
    j: KEYS.j, k: KEYS.k };
  const action = own[event.key] || everywhere[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
}

for (const id of ["search", "file", "code", "role", "least", "most"]) $(id).addEventListener("input", update);
$("only").addEventListener("change", () => document.body.classList.toggle("only", $("only").checked));
$("turn").addEventListener("input", align);
document.addEventListener("keydown", pressed);
fillChoices();
update();
const linked = documents.find((item) => `#${idOf(item)}` === location.hash);
if (linked) select(linked);
addEventListener("hashchange", () => {
  const item = documents.find((item) => `#${idOf(item)}` === location.hash);
  if (item) select(item);
});
