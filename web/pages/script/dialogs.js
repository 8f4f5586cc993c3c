// Dialogs: each plans requests from its form, which it sends, or copies as lines for a shell.

let declined = false;

function ask(dialog, plan) {
  const form = dialog.querySelector("form"), wrong = dialog.querySelector(".wrong"), copied = dialog.querySelector(".curl");
  const trying = async (act) => {
    wrong.textContent = "";
    try { await act(plan(new FormData(form))); } catch (fault) {
      wrong.textContent = fault.message;
      if (dialog.refused) dialog.refused(fault);
    }
  };
  wrong.textContent = "";
  if (copied) copied.textContent = "Copy as curl";
  if (copied) copied.onclick = () => trying(({requests}) => copy(copied, requests));
  form.onsubmit = (event) => {
    event.preventDefault();
    trying(async ({requests, done}) => {
      const button = form.querySelector("[type=submit]"), results = [];
      button.disabled = true;
      try { for (const request of requests) results.push(await call(request)); } finally { button.disabled = false; }
      dialog.close();
      say(done(results));
      await refresh();
    });
  };
  if (!dialog.open) dialog.showModal();
}

function confirm({title, text, name, danger = false, ...plan}) {
  const button = $("confirming").querySelector("[type=submit]");
  $("confirming-title").textContent = title;
  $("confirming-text").textContent = text;
  button.textContent = name;
  button.classList.toggle("danger", danger);
  ask($("confirming"), () => plan);
}

async function refresh() {
  poll();
  pollStatus();
  if (!shown) return;
  const queue = shown, [found] = await Promise.all([lookAtReasons(), look()]), reason = search.get("reason");
  if (queue === shown && reason && found?.complete && !found.reasons.some((group) => group.reason === reason)) showOnly("");  // the last one has left
  if (document.activeElement === document.body) $("heading").focus();  // the button is no more
}

// Send a message.

function planSend(form) {
  const message = {text: form.get("text")}, queue = form.get("queue");
  for (const name of ["key", "recipient", "dedup_id"]) if (form.get(name)) message[name] = form.get(name);
  for (const name of ["priority", "delay", "ttl"]) if (form.get(name)) message[name] = Number(form.get(name));
  if (form.get("attributes")) message.attributes = parse(form.get("attributes"), "attributes");
  return {
    requests: [{method: "POST", path: `${at(queue)}/messages`, body: message}],
    done: ([{id}]) => {
      $("sending").querySelector("[name=text]").value = "";
      return `Sent to ${queue} as ${id}.`;
    },
  };
}

function parse(text, name) {
  try { return JSON.parse(text); } catch { throw new Error(`The ${name} are not JSON, as in {"name": "value"}.`); }
}

for (const button of document.querySelectorAll(".send")) button.onclick = () => {
  const form = $("sending").querySelector("form");
  form.elements.queue.value = shown || form.elements.queue.value || "default";
  ask($("sending"), planSend);
  form.elements.text.focus();
};
$("sending").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("sending").querySelector("form").requestSubmit(); };

// Change settings.

const SECONDS = {type: "number", min: 0, step: "any"}, COUNT = {type: "number", min: 0, step: 1};
const SETTINGS = {
  paused: ["Stop deliveries; writes go on", {type: "checkbox"}],
  max_receives: ["Deliveries without an ack before a message is dead-lettered; 0: no limit", COUNT],
  lease: ["Seconds that a reader holds a message if it names no time", SECONDS],
  dead_letter_queue: ["Where dead letters go; empty: the queue's name and .dead", {maxLength: 80}],
  retention: ["Seconds after which a message expires; empty: never", SECONDS],
  dead_letter_expired: ["Dead-letter expired messages instead of dropping them", {type: "checkbox"}],
  delay: ["Seconds that a message waits that names no delay", SECONDS],
  max_messages: ["A write above this many messages is refused; empty: no limit", COUNT],
  max_bytes: ["A write above this many bytes is refused; empty: no limit", COUNT],
  max_message_bytes: ["A longer text, in bytes, is refused; empty: no limit", COUNT],
  dedup_window: ["Seconds that the queue remembers dedup ids and idempotency keys", SECONDS],
  dedup_content: ["Take the text's digest as the dedup id of a message without one", {type: "checkbox"}],
  dedup_scope: ["Where a dedup id counts: in the whole queue, or in a key's messages", ["queue", "key"]],
  key_lock: ["While a message of a key is leased: deliver none of this key (run), or those before it (head)", ["run", "head"]],
  expires: ["Seconds after which the queue is deleted while empty and unused; empty: never", SECONDS],
  wait: ["Seconds that an SQS read waits that names no wait", SECONDS],
  tags: ["Tags, as a JSON object; without effect", {json: true}],
  sqs: ["Attributes of the SQS endpoint, as a JSON object; without effect", {json: true}],
};

function makeSetting(name, value) {
  const [means, kind] = SETTINGS[name] || ["", {json: true}], label = make("label"), input = make(Array.isArray(kind) ? "select" : "input");
  if (Array.isArray(kind)) input.append(...kind.map((one) => make("option", one))); else Object.assign(input, {autocomplete: "off", spellcheck: false}, kind);
  input.name = name;
  if (kind.type === "checkbox") input.checked = value; else input.value = value === null ? "" : kind.json ? JSON.stringify(value) : value;
  label.append(make("b", name, "mono"), make("span", means), input);
  return label;
}

function read(form, name, before) {
  const [, kind] = SETTINGS[name] || ["", {json: true}], text = form.get(name);
  if (kind.type === "checkbox") return text !== null;
  if (kind.json) return JSON.stringify(before) === text ? before : parse(text || "{}", name);
  return text === "" ? null : kind.type === "number" ? Number(text) : text;
}

async function openSettings() {
  const queue = shown;
  try {
    const {value: {settings}, version} = await exchange({path: at(queue)});
    $("load").hidden = true;
    $("setting-title").textContent = `Settings of ${queue}`;
    $("setting-fields").replaceChildren(...[...new Set([...Object.keys(SETTINGS), ...Object.keys(settings)])].filter((name) => name in settings).map((name) => makeSetting(name, settings[name])));
    ask($("setting"), (form) => {
      const body = {};
      for (const [name, before] of Object.entries(settings)) if (read(form, name, before) !== before) body[name] = read(form, name, before);
      if (!Object.keys(body).length) throw new Error("You have changed nothing.");
      return {requests: [{method: "PUT", path: at(queue), body, version}], done: () => `Changed ${Object.keys(body).join(", ")}.`};
    });
    $("setting-fields").querySelector("input").focus();
  } catch (fault) { fail(fault); }
}

$("settings").onclick = $("load").onclick = openSettings;
$("setting").refused = (fault) => { $("load").hidden = fault.code !== "precondition_failed"; };

// Sign in.

function askForToken(wrong) {
  $("sign").hidden = false;
  if (declined || $("signing").open) return;
  const form = $("signing").querySelector("form");
  form.reset();
  ask($("signing"), (given) => {
    sessionStorage.setItem("token", given.get("token"));
    return {requests: [{path: "queues?limit=1"}], done: () => "Signed in."};
  });
  $("signing").querySelector(".wrong").textContent = wrong;
}

$("signing").refused = () => sessionStorage.removeItem("token");
$("signing").onclose = () => {
  declined = !token();
  statusRefused = false;
};
$("sign").onclick = () => {
  declined = false;
  if (!token()) return askForToken("");
  sessionStorage.removeItem("token");
  return poll();
};
for (const button of document.querySelectorAll(".cancel")) button.onclick = () => button.closest("dialog").close();
$("dismiss").onclick = () => { $("failed").hidden = true; };
