// Shows a state of the server and sends what the person says. Texts become text nodes, never HTML.
// A verdict counts when the server has answered; until then the page keeps it and can send it again.
"use strict";

const CHOICES = { 1: 4, 2: 3, 3: 2, 4: 1, 5: -1, 6: -2, 7: -3, 8: -4, t: "tie", b: "both_bad" };
const CONFIDENCES = { q: 1, w: 2, e: 3 };
const $ = (id) => document.getElementById(id);

let annotator = null;
let state = null;
let shownAt = 0;
let busy = false;

// Talking to the server.

async function ask(question, more = {}) {
  if (busy) return;
  busy = true;
  $("save").disabled = $("undo").disabled = true;
  try {
    const response = await fetch(`/api/${question}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ annotator, ...more }),
    });
    const reply = await read(response);
    const next = response.ok ? reply : reply.state;
    say(response.ok ? "" : reply.error);
    if (next) show(next);
    return response.ok;
  } catch {
    const unsaved = question === "verdict" ? ", so this is not saved yet. Press Enter to" : ". Please";
    say(`The server does not answer${unsaved} try again.`);
  } finally {
    busy = false;
    $("save").disabled = false;
    $("undo").disabled = !state?.progress.last;
  }
}

async function read(response) {
  const text = await response.text();
  try {
    return JSON.parse(text);
  } catch {
    return { error: text.trim() || `The server says ${response.status}.` };
  }
}

async function begin(name) {
  annotator = name;
  if (await ask("next")) localStorage.setItem("annotator", annotator);
}

function save() {
  const verdict = chosen("verdict");
  if (verdict === null) return say("Choose first which answer is better: keys 1 to 8, T or B.");
  return ask("verdict", {
    pair_id: state.pair.pair_id,
    verdict: Number(verdict) || verdict,
    confidence: Number(chosen("confidence")) || null,
    flag: $("flag").checked,
    comment: $("comment").value.trim(),
    seconds: Math.round(performance.now() - shownAt) / 1000,
  });
}

function undo() {
  if (state?.progress.last) return ask("undo", { verdict_id: state.progress.last });
}

// Showing.

function show(next) {
  state = next;
  annotator = state.annotator;
  const { pair, progress } = state;
  document.body.dataset.screen = pair ? "work" : "done";
  $("login").hidden = true;
  $("work").hidden = $("verdict").hidden = !pair;
  $("done").hidden = Boolean(pair);
  $("leave").textContent = annotator;
  $("bar").max = Math.max(1, progress.mine + progress.left_for_me);
  $("bar").value = progress.mine;
  const total = progress.mine + progress.left_for_me;
  $("count").textContent = `${progress.mine} of ${total} · all together ${progress.given} of ${progress.wanted}`;
  $("thanks").textContent = `Thank you, ${annotator}: ${progress.mine} verdicts, and no pair is left for you.`;
  if (pair) showPair(pair);
}

function showPair(pair) {
  fill($("prompt"), pair.prompt);
  fill($("left"), pair.left);
  fill($("right"), pair.right);
  choose("verdict", pair.said?.verdict ?? null);
  choose("confidence", pair.said?.confidence ?? null);
  $("flag").checked = pair.said?.flag ?? false;
  $("comment").value = pair.said?.comment ?? "";
  if (document.activeElement !== document.body) document.activeElement.blur();
  scrollTo(0, 0);
  shownAt = performance.now();
}

function fill(place, content) {
  const parts = [];
  const add = (text, role) => {
    const part = document.createElement("div");
    if (role) part.className = "role";
    part.textContent = text;
    parts.push(part);
  };
  if (typeof content === "string") add(content);
  else {
    for (const message of content) {
      if (content.length > 1 || message.role !== "assistant") add(message.role, true);
      add(message.content);
    }
  }
  place.replaceChildren(...parts);
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

// The form.

function chosen(group) {
  return document.querySelector(`input[name=${group}]:checked`)?.value ?? null;
}

function choose(group, value) {
  for (const input of document.getElementsByName(group)) input.checked = input.value === String(value);
  mark();
}

function mark() {
  const verdict = Number(chosen("verdict")) || 0;
  $("left").classList.toggle("better", verdict > 0);
  $("right").classList.toggle("better", verdict < 0);
}

function toggleGuideline(open = $("guideline").hidden) {
  $("guideline").hidden = !open;
  $("toggle").setAttribute("aria-expanded", String(open));
  localStorage.setItem("guideline", open ? "open" : "closed");
}

function leave() {
  annotator = state = null;
  say("");
  document.body.dataset.screen = "name";
  $("work").hidden = $("verdict").hidden = $("done").hidden = true;
  $("login").hidden = false;
  $("name").focus();
  $("name").select();
}

// Keys. Digits by their place, so that they need no shift on any keyboard; letters as written.

function onKey(event) {
  const typing = event.target.matches("textarea, input:not([type])");
  if (event.target === $("comment")) {
    if (event.key === "Escape") $("comment").blur();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  }
  if (typing || !state || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.matches("button") && ["Enter", " "].includes(event.key)) return;
  const key = /^(Digit|Numpad)[1-8]$/.test(event.code) ? event.code.slice(-1) : event.key.toLowerCase();
  if (!act(key)) return;
  event.preventDefault();
}

function act(key) {
  if (key === "g") toggleGuideline();
  else if (key === "z") undo();
  else if (!state.pair) {
    if (key !== "enter") return false;
    ask("next");
  } else if (key === "enter") save();
  else if (key in CHOICES) choose("verdict", CHOICES[key]);
  else if (key in CONFIDENCES) choose("confidence", chosen("confidence") === String(CONFIDENCES[key]) ? null : CONFIDENCES[key]);
  else if (key === "f") $("flag").checked = !$("flag").checked;
  else if (key === "c") $("comment").focus();
  else return false;
  if (key in CHOICES) say("");
  return true;
}

document.addEventListener("keydown", onKey);
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  begin($("name").value);
});
$("verdict").addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
$("verdict").addEventListener("change", mark);
$("undo").addEventListener("click", undo);
$("again").addEventListener("click", () => ask("next"));
$("toggle").addEventListener("click", () => toggleGuideline());
$("leave").addEventListener("click", leave);
$("name").value = localStorage.getItem("annotator") ?? "";
toggleGuideline(localStorage.getItem("guideline") !== "closed");
leave();
