"use strict";
// Display data from the service by textContent or as a number in an attribute, never as HTML.
const EVERY = 2000, KEPT = 150, PAGE = 25, SHOWN = 20000, MOST_PAGES = 10;  // ms, samples, messages, characters, pages of queues
const STATES = ["ready", "leased", "delayed", "blocked", "dead"];
const $ = (id) => document.getElementById(id);
const past = new Map();  // queue → samples of it, oldest first
let stats = new Map(), rows = new Map(), shown = "", pages = [], failures = 0, timer = 0, asking = null, declined = false;

function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

// The service.

class Refused extends Error {
  constructor(status, problem) { super(problem.detail || problem.title || `The service replied with status ${status}`); this.status = status; }
}

async function call(method, path, body, signal) {
  const headers = {Accept: "application/json"}, token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET") headers["Idempotency-Key"] = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const reply = await fetch(path, {method, headers, body: body && JSON.stringify(body), signal, credentials: "omit", cache: "no-store"});
  const text = await reply.text();
  let result = {};
  try { result = text ? JSON.parse(text) : {}; } catch { result = {detail: "The reply is not from this service. Check the proxy."}; }
  if (reply.ok) return result;
  if (reply.status === 401) $("sign").hidden = false;
  if (reply.status === 401 && !declined) askForToken(token ? "The service does not know this token." : "");
  throw new Refused(reply.status, result);
}

const at = (queue) => `/queues/${encodeURIComponent(queue)}`;

// Formatting.

const whole = (number) => number.toLocaleString("en");
const rate = (number) => number === null ? "–" : number >= 100 || number === 0 ? whole(Math.round(number)) : number.toFixed(1);
function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${whole(Math.floor(seconds / size))} ${unit}`;
  return `${Math.floor(seconds)} s`;
}
const depth = (counts) => counts.ready + counts.leased + counts.delayed + counts.blocked;

function say(text) {
  $("said").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $("said").textContent = ""; }, 6000);
}

// A rate over the last 10 s or so: over a single poll it would flicker.
function speed(samples, name, end = samples.length - 1) {
  const last = samples[end], first = samples[Math.max(0, end - 5)];
  return last && last.time > first.time ? Math.max(0, last[name] - first[name]) * 1000 / (last.time - first.time) : null;
}

function line(values, most) {
  const step = 300 / Math.max(values.length - 1, 15), start = 300 - step * (values.length - 1);
  return values.map((value, place) => `${place ? "L" : "M"}${(start + place * step).toFixed(1)} ${(98 - 96 * value / most).toFixed(1)}`).join("");
}

function draw(svg, series, label) {
  const most = Math.max(1, ...series.flatMap((one) => one.values));
  const paths = series.flatMap(({values, name}) => {
    if (values.length < 2) return [];
    const drawn = line(values, most), start = drawn.slice(1).split(" ")[0];
    return series.length === 1 ? [[`${drawn}L300 100L${start} 100Z`, "under"], [drawn, ""]] : [[drawn, name]];
  });
  while (svg.childElementCount > paths.length) svg.lastChild.remove();
  paths.forEach(([d, name], place) => {
    const path = svg.children[place] || svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    path.setAttribute("d", d);
    path.setAttribute("class", name);
  });
  svg.setAttribute("aria-label", label(most));
  return most;
}

const drawDepth = (svg, samples) => draw(svg, [{values: samples.map((one) => one.depth)}], (most) => `Messages in the queue over the last minutes, at most ${whole(most)}`);

// All queues.

function newRow(queue) {
  const row = make("tr"), head = make("th"), link = make("a", queue), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  link.href = `#/${encodeURIComponent(queue)}`;
  head.scope = "row";
  head.append(link);
  svg.setAttribute("viewBox", "0 0 300 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const names = ["ready", "leased", "delayed wide", "blocked wide", "dead", "wide", "wide", "wide", ""];
  const cells = names.map((name) => make("td", undefined, name));
  cells[8].append(svg);
  row.append(head, ...cells);
  return {row, cells, svg};
}

function showAll() {
  const wanted = $("find").value.trim().toLowerCase(), body = $("queues").tBodies[0];
  for (const [queue, {row}] of rows) if (!stats.has(queue)) { row.remove(); rows.delete(queue); }
  let before = null;
  for (const [queue, counts] of [...stats].reverse()) {
    if (!rows.has(queue)) rows.set(queue, newRow(queue));
    const {row, cells, svg} = rows.get(queue), samples = past.get(queue);
    const speeds = ["sent", "received"].map((name) => speed(samples, name));
    const figures = [...STATES.map((state) => whole(counts[state])), depth(counts) ? age(counts.oldest_age) : "–", ...speeds.map(rate)];
    figures.forEach((figure, place) => {
      if (cells[place].textContent !== figure) cells[place].textContent = figure;
      cells[place].classList.toggle("none", figure === "0" || figure === "–");
    });
    if (row.nextSibling !== before || row.parentNode !== body) body.insertBefore(row, before);
    before = row;
    row.hidden = !queue.toLowerCase().includes(wanted);
    drawDepth(svg, samples);
  }
  $("queues").hidden = !stats.size;
  $("empty").hidden = stats.size > 0;
  $("find").hidden = stats.size < 8 && !wanted;
}

// One queue.

function showOne() {
  const counts = stats.get(shown), samples = past.get(shown) || [];
  $("name").textContent = shown;
  $("purge").disabled = $("redrive").disabled = !counts;
  const figures = counts ? [...STATES.map((state) => [state, whole(counts[state])]), ["oldest", depth(counts) ? age(counts.oldest_age) : "–"],
    ["sent", whole(counts.sent)], ["read", whole(counts.received)], ["acked", whole(counts.acked)]] : [["", "This queue does not exist yet."]];
  $("stats").replaceChildren(...figures.map(([name, figure]) => {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", figure, figure === "0" || figure === "–" ? "none" : name));
    return pair;
  }));
  $("deepest").textContent = `up to ${whole(drawDepth($("depth"), samples))}`;
  const speeds = (name) => samples.slice(1).map((_, place) => speed(samples, name, place + 1));
  const series = [{values: speeds("sent"), name: "sent"}, {values: speeds("received"), name: "read"}];
  const most = draw($("rates"), series, (fastest) => `Messages sent and read per second over the last minutes, at most ${rate(fastest)}`);
  $("fastest").textContent = `up to ${rate(most)}`;
}

function showMessage(message) {
  const item = make("li"), details = make("details"), summary = make("summary"), more = make("dl");
  const reason = message.attributes?.dead_letter_reason, first = message.text.slice(0, 300).split("\n", 1)[0];
  summary.append(make("span", message.id, "mono"), make("span", message.state, message.state), make("span", first || "(empty)", first ? "text mono" : "text soft"),
    make("span", `${reason === undefined ? "" : `${reason}, `}${age((Date.now() - Date.parse(message.sent_at)) / 1000)} ago`, "soft"));
  const text = make("pre", message.text.slice(0, SHOWN));
  const shownFields = {...message, ...message.attributes && {attributes: JSON.stringify(message.attributes)}};
  if (message.text.length > SHOWN) shownFields.length = `${whole(message.text.length)} characters; the first ${whole(SHOWN)} are shown`;
  for (const [name, value] of Object.entries(shownFields)) if (!["id", "state", "text"].includes(name)) more.append(make("dt", name.replaceAll("_", " ")), make("dd", value));
  details.append(summary, text, more, actions(message));
  item.append(details);
  return item;
}

const start = () => $("order").value === "before" ? ["9223372036854775807"] : ["0"];

function actions(message) {
  const row = make("div", undefined, "row actions");
  const act = (name, done, change) => {
    const button = make("button", name);
    button.type = "button";
    button.onclick = async () => {
      try {
        await change();
        say(done);
        await poll();
        await look();
      } catch (fault) { say(fault.message); }
    };
    row.append(button);
    return button;
  };
  if (message.attributes?.dead_letter_from !== undefined) act("Redrive", `Moved ${message.id} back.`, async () => {
    const {redriven} = await call("POST", `${at(message.queue)}/redrive`, {ids: [message.id]});
    if (!redriven) throw new Error("The message was not moved: it is leased, or no longer in this queue.");
  });
  act("Delete", `Deleted ${message.id}.`, () => call("DELETE", `${at(message.queue)}/messages/${message.id}`)).classList.add("danger");
  return row;
}

async function look(from = pages.at(-1) || start()[0]) {
  const queue = shown, query = new URLSearchParams({limit: PAGE + 1, [$("order").value]: from});
  if ($("state").value) query.set("state", $("state").value);
  try {
    const found = await call("GET", `${at(queue)}/peek?${query}`);
    if (queue !== shown) return;
    $("messages").replaceChildren(...found.slice(0, PAGE).map(showMessage));
    $("nothing").hidden = found.length > 0;
    $("before").disabled = pages.length < 2;
    $("after").disabled = found.length <= PAGE;
    $("after").value = found.length > PAGE ? found[PAGE - 1].id : "";
  } catch (fault) { say(fault.message); }
}

function lookFrom(start) {
  pages = start;
  return look();
}

function go() {
  let wanted = "";
  try { wanted = decodeURIComponent(location.hash.replace(/^#\/?/, "")); } catch { /* not a link of ours */ }
  const changed = wanted !== shown;
  shown = wanted;
  $("all").hidden = shown !== "";
  $("one").hidden = shown === "";
  document.title = shown ? `${shown} · Queues` : "Queues";
  if (!shown) return showAll();
  showOne();
  if (!changed) return undefined;
  $("messages").replaceChildren();
  $("state").value = "";
  $("name").focus();
  return lookFrom(start());
}

// Dialogs and actions.

async function ask(dialog) {
  const form = dialog.querySelector("form"), wrong = dialog.querySelector(".wrong");
  wrong.textContent = "";
  if (!dialog.open) dialog.showModal();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      await dialog.submitted(new FormData(form));
      dialog.close();
      await poll();
    } catch (fault) { wrong.textContent = fault.message; }
    button.disabled = false;
  };
}

function askForToken(wrong) {
  if ($("signing").open) return;
  $("signing").querySelector("form").reset();
  ask($("signing"));
  $("signing").querySelector(".wrong").textContent = wrong;
}

$("signing").onclose = () => { declined = !sessionStorage.getItem("token"); };
$("signing").submitted = async (form) => {
  sessionStorage.setItem("token", form.get("token"));
  try { await call("GET", "/queues"); } catch (fault) { sessionStorage.removeItem("token"); throw fault; }
  if (shown) look();
};

$("sending").submitted = async (form) => {
  const message = {text: form.get("text")};
  for (const name of ["key", "recipient", "dedup_id"]) if (form.get(name)) message[name] = form.get(name);
  for (const name of ["priority", "delay", "ttl"]) if (form.get(name)) message[name] = Number(form.get(name));
  if (form.get("attributes")) {
    try { message.attributes = JSON.parse(form.get("attributes")); } catch { throw new Error("The attributes are not JSON."); }
  }
  const queue = form.get("queue"), result = await call("POST", `${at(queue)}/messages`, message);
  say(`Sent to ${queue} as ${result.id}.`);
  $("sending").querySelector("[name=text]").value = "";
  if (queue === shown) look();
};

$("purging").submitted = async () => {
  const result = await call("POST", `${at(shown)}/purge`);
  say(`Purged ${whole(result.purged)} ${result.purged === 1 ? "message" : "messages"}.`);
  lookFrom(start());
};

for (const button of document.querySelectorAll(".send")) button.onclick = () => {
  const form = $("sending").querySelector("form");
  form.elements.queue.value = shown || form.elements.queue.value || "default";
  ask($("sending"));
  form.elements.text.focus();
};
for (const button of document.querySelectorAll(".cancel")) button.onclick = () => button.closest("dialog").close();
$("sending").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("sending").querySelector("form").requestSubmit(); };
$("purge").onclick = () => {
  const count = depth(stats.get(shown));
  $("purging-title").textContent = `Purge ${count === 1 ? "the one message" : `all ${whole(count)} messages`} of ${shown}?`;
  ask($("purging"));
};
$("redrive").onclick = async () => {
  try {
    const result = await call("POST", `${at(shown)}/redrive`);
    say(result.redriven ? `Moved ${whole(result.redriven)} ${result.redriven === 1 ? "dead letter" : "dead letters"} back.` : "This queue has no dead letters to redrive.");
    await poll();
    await lookFrom(start());
  } catch (fault) { say(fault.message); }
};
$("again").onclick = () => look();
$("order").onchange = () => lookFrom(start());
$("state").onchange = () => lookFrom(start());
$("after").onclick = () => lookFrom([...pages, $("after").value]);
$("before").onclick = () => lookFrom(pages.slice(0, -1));
$("find").oninput = showAll;
$("sign").onclick = () => {
  if (!sessionStorage.getItem("token")) return askForToken("");
  sessionStorage.removeItem("token");
  return poll();
};

// Polling, while the page is visible.

async function listing(signal) {
  const queues = [];
  let page = {next: ""};
  for (let number = 0; number < MOST_PAGES && page.next !== undefined; number += 1) {
    page = await call("GET", `/queues?after=${encodeURIComponent(page.next)}`, undefined, signal);
    queues.push(...page.queues);
  }
  return queues;
}

async function poll() {
  clearTimeout(timer);
  if (asking) asking.abort();
  const mine = asking = new AbortController();
  if (document.hidden) return;
  try {
    const queues = await listing(mine.signal), time = performance.now();
    stats = new Map(queues.map(({queue, stats}) => [queue, stats]));
    for (const queue of past.keys()) if (!stats.has(queue)) past.delete(queue);
    for (const [queue, {sent, received, ...rest}] of stats) {
      const samples = past.get(queue) || [];
      if (samples.push({time, sent, received, depth: depth(rest)}) > KEPT) samples.shift();
      past.set(queue, samples);
    }
    failures = 0;
    $("pulse").textContent = "live";
    $("pulse").className = "";
    if (shown) showOne(); else showAll();
  } catch (fault) {
    if (mine.signal.aborted) return;
    failures += 1;
    $("pulse").textContent = fault instanceof Refused ? fault.message : "the service does not respond";
    $("pulse").className = "lost";
  }
  $("sign").textContent = sessionStorage.getItem("token") ? "Sign out" : "Sign in";
  if (sessionStorage.getItem("token")) $("sign").hidden = false;
  if (mine === asking) timer = setTimeout(poll, Math.min(EVERY * 2 ** failures, 30000));
}

$("curl").textContent = `curl -d '{"text": "hello"}' ${location.origin}/messages`;
addEventListener("hashchange", go);
document.addEventListener("visibilitychange", poll);
go();
poll();
