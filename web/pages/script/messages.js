// The messages of a queue, page by page, and what can be done with them.

const PAGE = 25, SHOWN = 20000, SEARCHED = 20;  // messages, characters, requests of one search
let pages = [], looking = null;
let search = new URLSearchParams();  // in the address: text, key or id; reason, state; and order=after

// Search, and keep the search in the address, for a reload. Without one it shows all messages.
function searchFor(wanted) {
  const by = ["key", "id"].find((name) => wanted.get(name)) || "text", reason = wanted.get("reason") || "";
  search = wanted;
  for (const [id, value] of Object.entries({by, wanted: search.get(by), state: search.get("state"), order: search.get("order") || "before"})) $(id).value = value || "";
  $("only").hidden = !reason;
  put($("only").firstChild, `Only “${reason}”`);
  $("only").setAttribute("aria-label", `Show messages of any reason, not only “${reason}”`);
  history.replaceState(null, "", `#/${encodeURIComponent(shown)}${search.size ? `?${search}` : ""}`);
  return lookFrom([start()]);
}

// Return the search that the fields ask for.
function asked(reason = search.get("reason")) {
  const order = $("order").value === "after" && "after", fields = {[$("by").value]: $("wanted").value, reason, state: $("state").value, order};
  return new URLSearchParams(Object.entries(fields).filter(([, value]) => value));
}

const isId = (text) => /^[0-9]+$/.test(text);

function start() {
  const query = new URLSearchParams({limit: PAGE});
  for (const name of ["text", "key", "reason", "state"]) if (search.get(name)) query.set(name, search.get(name));
  const id = search.get("id");
  if (id) {
    query.set("limit", 1);
    query.set("after", isId(id) ? BigInt(id) - 1n : id);  // the service refuses a wrong one in the address
  } else if (search.get("order") !== "after") query.set("before", "9223372036854775807");
  return `${at(shown)}/peek?${query}`;
}

// Look on from the page's address, until a page is full: a search reads only a part of the queue at each request.
async function look() {
  const mine = looking = {}, found = [], began = performance.now();
  let next = pages.at(-1), requests = 0;
  $("messages").setAttribute("aria-busy", "true");
  try {
    do {
      const reply = await exchange({path: next});
      if (mine !== looking) return;
      found.push(...reply.value);
      next = reply.next;
      requests += 1;
    } while (next && found.length < PAGE && requests < SEARCHED && performance.now() - began < 2 * EVERY);
    showMessages(found, next);
  } catch (fault) { if (mine === looking) fail(fault); }
  $("messages").removeAttribute("aria-busy");
}

function showMessages(found, next) {
  const id = search.get("id");
  if (id) [found, next] = [found.filter((message) => BigInt(message.id) === BigInt(id)), undefined];
  $("messages").replaceChildren(...found.map(showMessage));
  $("nothing").hidden = found.length > 0;
  const searched = ["text", "key", "id", "reason", "state"].some((name) => search.get(name));
  put($("nothing"), found.length ? "" : next ? "Nothing found so far. Next searches on." : searched ? "No message matches." : "No messages here.");
  $("before").disabled = pages.length < 2;
  $("after").disabled = !next;
  $("after").value = next || "";
  $("select").hidden = !found.length;
  showSelected();
}

function lookFrom(addresses) {
  $("failed").hidden = true;
  pages = addresses;
  return look();
}

function showOnly(reason) {
  $("state").value = reason && stats.get(shown)?.dead ? "dead" : "";
  if (reason) $("heading").focus();
  return searchFor(asked(reason));
}

// One message.

const deathOf = ({attributes: {dead_letter_reason: reason, dead_letter_at: time, dead_letter_receive_count: tries, dead_letter_from: from} = {}}) =>
  from === undefined ? null : {reason: String(reason), time: String(time), tries: Number(tries), from: String(from)};

function showMessage(message) {
  const item = make("li"), details = make("details"), summary = make("summary"), box = make("input");
  const first = message.text.slice(0, 300).split("\n", 1)[0], why = whyOf(message);
  box.type = "checkbox";
  box.setAttribute("aria-label", `Select ${message.id}`);
  box.onchange = showSelected;
  item.message = message;
  summary.append(make("span", message.id, "mono"), make("span", message.state, message.state), makeText("span", first || "(empty)", first ? "text mono" : "text soft"),
    make("span", since(message.sent_at), "soft age"));
  if (why) summary.append(why);
  details.ontoggle = () => { if (details.open && details.childElementCount === 1) details.append(...contentsOf(message)); };
  details.append(summary);
  item.append(box, details);
  return item;
}

// Why and when it died, or until when it is leased: in the list, where it is needed first.
function whyOf(message) {
  const death = deathOf(message), why = make("span", undefined, "why");
  if (death) why.append(makeText("span", death.reason, "text dead"), make("span", `died ${since(death.time)} after ${counted(death.tries, "try", "tries")} in ${death.from}`));
  if (message.state === "leased") why.append(make("span", `leased until ${new Date(message.leased_until).toLocaleTimeString("en-GB")}${message.leased_by ? ` by ${message.leased_by}` : ""}`, "leased"));
  return why.childElementCount ? why : null;
}

function contentsOf(message) {
  const {id, text, attributes = {}, ...fields} = message, own = {}, more = make("dl");
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "dead_letter_history") fields.earlier_deaths = earlier(value);
    else if (name.startsWith("dead_letter_")) fields[name] = value;
    else own[name] = value;
  }
  if (Object.keys(own).length) fields.attributes = JSON.stringify(own);
  if (text.length > SHOWN) fields.length = `${whole(text.length)} characters; the first ${whole(SHOWN)} are shown`;
  for (const [name, value] of Object.entries(fields)) more.append(make("dt", name.replaceAll("_", " ")), makeText("dd", typeof value === "object" ? JSON.stringify(value) : value));
  const row = make("div", undefined, "row actions"), called = `message ${id} of ${message.queue}`;
  if (deathOf(message)) row.append(makeButton("Redrive", () => confirm({
    title: `Redrive ${called}?`, text: `It goes back to ${deathOf(message).from}, with a fresh count.`, name: "Redrive", requests: byId([message], redriving),
    done: (results) => sum(results, "redriven") ? `Moved ${id} back.` : "The message was not moved: it is leased, or no longer in this queue.",
  })));
  row.append(makeButton("Delete", () => confirm({
    title: `Delete ${called}?`, text: "This removes it permanently.", name: "Delete", danger: true,
    requests: [{method: "DELETE", path: `${at(message.queue)}/messages/${id}`}], done: () => `Deleted ${id}.`,
  }), "danger"), makeButton("Copy as curl", (event) => copy(event.target, [{path: `${at(message.queue)}/messages/${id}`}])));
  return [makeText("pre", text.slice(0, SHOWN)), more, row];
}

function earlier(history) {
  try {
    return JSON.parse(history).map((death) => `${death.dead_letter_at}: ${death.dead_letter_reason}, after ${counted(death.dead_letter_receive_count, "try", "tries")} in ${death.dead_letter_from}`).join("\n");
  } catch { return history; }  // an attribute that a client wrote
}

// The selected ones.

const boxes = () => [...$("messages").querySelectorAll("input[type=checkbox]")];
const selected = () => boxes().filter((box) => box.checked).map((box) => box.parentNode.message);

function showSelected() {
  const chosen = selected(), died = chosen.filter(deathOf).length;
  $("every").checked = chosen.length > 0 && chosen.length === boxes().length;
  $("every").indeterminate = chosen.length > 0 && !$("every").checked;
  $("redrive-selected").hidden = !died;
  $("delete-selected").hidden = !chosen.length;
  put($("redrive-selected"), `Redrive ${whole(died)} selected`);
  put($("delete-selected"), `Delete ${whole(chosen.length)} selected`);
}

$("every").onchange = () => {
  for (const box of boxes()) box.checked = $("every").checked;
  showSelected();
};
$("redrive-selected").onclick = () => {
  const chosen = selected().filter(deathOf);
  confirm({title: `Redrive ${counted(chosen.length, "dead letter")}?`, text: "Each goes back to the queue it came from, with a fresh count. Leased ones stay.", name: "Redrive", requests: byId(chosen, redriving), done: redriven});
};
$("delete-selected").onclick = () => {
  const chosen = selected();
  confirm({title: `Delete ${counted(chosen.length, "message")}?`, text: "This removes them permanently, leased ones too.", name: "Delete", danger: true, requests: byId(chosen, purging), done: purged});
};
$("search").onsubmit = (event) => {
  event.preventDefault();
  if ($("by").value === "id" && $("wanted").value && !isId($("wanted").value)) return fail(new Error("An id is a whole number."));
  return searchFor(asked());
};
$("only").onclick = () => showOnly("");
$("again").onclick = () => { lookFrom(pages); lookAtReasons(); };
$("order").onchange = $("state").onchange = () => searchFor(asked());
$("after").onclick = () => lookFrom([...pages, $("after").value]);
$("before").onclick = () => lookFrom(pages.slice(0, -1));
$("view").onclick = () => copy($("view"), [{path: pages.at(-1)}]);
