// The samples: three views, a search and filters, whose state is in the address after "#".
// Everything that a model wrote goes into the page as text, never as HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const STEP = 40; // cards at a time
const VIEWS = { responses: data.prompts, constraints: data.constraints, models: data.answers };
const [outcomes, sources] = document.querySelectorAll(".controls select");
const search = document.querySelector(".controls input");
const cards = document.querySelector(".cards");
const more = document.querySelector(".more");
let state = { view: "responses", outcome: "", source: "", q: "" };
let matching = [];

function make(tag, kind, text, ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== null && text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function badge(text, kind) {
  return make("span", "badge " + (kind || ""), text);
}

// ---- what matches ----

function outcomesOf(row) {
  if (state.view === "constraints") {
    return [row.reason || "kept", ...new Set(row.cases.map((each) => each.side))].filter(Boolean);
  }
  if (state.view === "models") {
    return [...new Set(row.responses.flatMap((each) => each.changes.map((change) => each.model + " " + change)))];
  }
  return row.responses.flatMap((each) => [each.outcome, each.side]).filter(Boolean);
}

function wanted(response) {
  return !state.outcome || response.outcome === state.outcome || response.side === state.outcome;
}

function matches(row) {
  if (state.source && row.source !== state.source) return false;
  if (state.outcome && !outcomesOf(row).includes(state.outcome)) return false;
  return !state.q || row.haystack.includes(state.q.toLowerCase());
}

// ---- cards ----

function responseCard(response) {
  const marks = (response.verdicts || []).map((verdict) => {
    const mark = make("i", "verdict " + verdict);
    mark.title = verdict;
    return mark;
  });
  const outcome = badge(response.outcome, response.outcome === "kept" ? "kept" : "");
  const badges = make("div", "badges", null, make("span", "", null, ...marks), outcome);
  if (response.side) badges.append(badge(response.side, response.side));
  badges.append(make("span", "", "accuracy " + response.accuracy));
  if (typeof response.score === "number") badges.append(make("span", "", "score " + response.score));
  const end = response.finish_reason;
  if (end && end !== "stop") badges.append(make("span", "", "ended by " + end));
  return make("div", "response", null, badges, make("p", "", response.text));
}

function promptCard(row) {
  const rate = row.pass_rate === null ? "" : " · pass rate " + Math.round(100 * row.pass_rate) + " %";
  return make(
    "article", "card", null,
    make("h4", "", row.instruction),
    make("div", "ids", row.source + " · " + row.id + rate),
    make("div", "query", row.query),
    ...row.responses.filter(wanted).map(responseCard),
  );
}

function modelsCard(row) {
  const columns = row.responses.map((each) => {
    const marks = each.verdicts.map((verdict) => make("i", "verdict " + verdict));
    const outcome = badge(each.outcome, each.outcome === "passes" ? "pass" : "fail");
    const badges = make("div", "badges", null, make("b", "", each.model), ...marks, outcome);
    badges.append(...each.changes.map((change) => badge(change)));
    return make("div", "response", null, badges, make("p", "", each.text));
  });
  return make(
    "article", "card", null,
    make("div", "ids", row.id), make("div", "query", row.prompt), make("div", "columns", null, ...columns),
  );
}

function caseLine(each) {
  const output = each.output ? "pass" : "fail";
  const marks = (each.verdicts || []).map((verdict) => make("i", "verdict " + verdict));
  const badges = make("div", "badges", null, badge("expects " + output, output), ...marks);
  if (each.side) badges.append(badge(each.side, each.side));
  return make("div", "response", null, badges, make("p", "", each.input || "(the empty text)"));
}

function folded(title, children) {
  return make("details", "", null, make("summary", "", title), ...children);
}

function constraintCard(row) {
  const about = [row.id, row.source, row.family, row.split].filter(Boolean).join(" · ");
  const card = make("article", "card", null, make("h4", "", row.instruction), make("div", "ids", about));
  const outcome = row.reason ? "dropped in " + row.stage + ": " + row.reason : "kept";
  card.append(make("div", "badges", null, badge(outcome, row.reason ? "" : "kept")));
  const functions = row.functions.map((each) => {
    const accuracy = each.accuracy === null ? "" : "accuracy " + each.accuracy;
    return make("div", "", null, make("div", "ids", accuracy), make("pre", "", each.code));
  });
  if (functions.length) card.append(folded(functions.length + " functions", functions));
  if (row.cases.length) card.append(folded(row.cases.length + " cases", row.cases.map(caseLine)));
  const back = row.back.map(([text, label]) => {
    return make("div", "badges", null, badge(label || "no label", label === "contradiction" ? "fail" : ""), text);
  });
  if (back.length) card.append(folded(back.length + " back-translations", back));
  return card;
}

// ---- state ----

function options(select, values, all) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  select.replaceChildren(new Option(all, ""));
  for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    select.append(new Option(value + " (" + count.toLocaleString("en") + ")", value));
  }
  select.hidden = counts.size < (select === sources ? 2 : 1);
}

function show(from) {
  const card = { responses: promptCard, constraints: constraintCard, models: modelsCard }[state.view];
  cards.append(...matching.slice(from, from + STEP).map(card));
  more.hidden = cards.children.length >= matching.length;
}

function render() {
  const rows = VIEWS[state.view];
  options(outcomes, rows.flatMap(outcomesOf), "every outcome");
  options(sources, rows.map((row) => row.source).filter(Boolean), "every source");
  outcomes.value = state.outcome;
  sources.value = state.source;
  search.value = state.q;
  for (const button of document.querySelectorAll(".views button")) {
    button.setAttribute("aria-pressed", button.textContent === state.view);
  }
  matching = rows.filter(matches);
  document.querySelector("output").textContent =
    matching.length.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " in the sample";
  cards.replaceChildren();
  show(0);
}

function change(part) {
  state = { ...state, ...part };
  const said = Object.entries(state).filter(([, value]) => value);
  history.replaceState(null, "", "#" + new URLSearchParams(said));
  render();
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("view")) return; // a link to a section
  state = { view: "responses", outcome: "", source: "", q: "", ...Object.fromEntries(given) };
  if (!(state.view in VIEWS)) state.view = "responses";
  render();
  document.getElementById("samples").scrollIntoView();
}

for (const rows of Object.values(VIEWS)) {
  for (const row of rows) row.haystack = JSON.stringify(row).toLowerCase();
}
for (const view of Object.keys(VIEWS).filter((view) => VIEWS[view].length)) {
  const button = make("button", "", view);
  button.addEventListener("click", () => change({ view, outcome: "", source: "" }));
  document.querySelector(".views").append(button);
}
if (!data.prompts.length) state.view = "constraints";
outcomes.addEventListener("change", () => change({ outcome: outcomes.value }));
sources.addEventListener("change", () => change({ source: sources.value }));
search.addEventListener("input", () => change({ q: search.value }));
more.addEventListener("click", () => show(cards.children.length));
window.addEventListener("hashchange", readAddress);
render();
readAddress();
