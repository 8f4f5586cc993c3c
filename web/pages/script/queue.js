// One queue: its figures, and its dead letters by reason.

let dead = null;  // dead letters when their reasons were last looked at

function showOne() {
  const counts = stats.get(shown), samples = past.get(shown) || [];
  put($("name"), shown);
  $("marks").replaceChildren(...counts ? marksOf(counts) : []);
  for (const id of ["settings", "pause", "redrive", "purge"]) $(id).disabled = !counts;
  put($("pause"), counts?.paused ? "Resume" : "Pause");
  showFigures($("stats"), counts ? [...STATES.map((state) => [state, whole(counts[state]), state]), ["oldest", oldestOf(counts), "oldest"],
    ...["sent", "received", "acked"].map((name) => [name === "received" ? "read" : name, whole(counts[name]), name])] : [["", answered ? "This queue does not exist yet." : "", ""]]);
  put($("deepest"), `up to ${whole(drawDepth($("depth"), samples))}`);
  const speeds = (name) => samples.slice(1).map((_, place) => speed(samples, name, place + 1));
  const series = [{values: speeds("sent"), name: "sent"}, {values: speeds("received"), name: "read"}];
  const most = draw($("rates"), series, (fastest) => `Messages sent and read per second over the last minutes, at most ${rate(fastest)}`);
  put($("fastest"), `up to ${rate(most)}`);
  if (counts && counts.dead !== dead) lookAtReasons();
}

async function lookAtReasons() {
  const queue = shown;
  if (!stats.has(queue)) return;
  dead = stats.get(queue).dead;
  let found = {reasons: [], complete: false};
  try { found = await call({path: `${at(queue)}/reasons`}); } catch (fault) { if (queue === shown) fail(fault); }
  if (queue !== shown) return;
  $("dead").hidden = !found.reasons.length;
  $("partly").hidden = found.complete;
  $("reasons").replaceChildren(...found.reasons.map((group) => showReason(group, found.complete)));
  return found;
}

function showReason({reason, dead_letters: count, oldest_at, newest_at}, complete) {
  const item = make("li"), buttons = make("div", undefined, "row");
  const letters = lettersOf(count, complete);
  const times = since(newest_at) === since(oldest_at) ? `died ${since(newest_at)}` : `the last died ${since(newest_at)}, the first ${since(oldest_at)}`;
  const button = (name, does, kind) => {
    const made = makeButton(name, async () => { try { await does(); } catch (fault) { fail(fault); } }, kind);
    made.setAttribute("aria-label", `${name} ${letters}: ${reason}`);
    buttons.append(made);
  };
  button("Show", () => showOnly(reason));
  button("Redrive", () => confirm({
    title: `Redrive ${letters}?`, text: `All dead letters of ${shown} with the reason “${reason}” go back to the queue they came from. Leased ones stay.`, name: "Redrive",
    requests: [redriving(shown, {reason})], done: redriven,
  }));
  button("Delete", async () => {
    const requests = await deletingOf(reason, count);
    confirm({title: `Delete ${letters}?`, text: `This removes the dead letters of ${shown} with the reason “${reason}” permanently, leased ones too.`, name: "Delete", requests, done: purged, danger: true});
  }, "danger");
  const text = makeText("span", reason, "text");
  text.title = reason;
  item.append(make("b", whole(count), "dead"), text, make("span", times, "soft"), buttons);
  return item;
}

const lettersOf = (count, complete) => `${complete ? "" : "at least "}${counted(count, "dead letter")}`;
const redriving = (queue, which) => ({method: "POST", path: `${at(queue)}/redrive`, body: which});
const purging = (queue, which) => ({method: "POST", path: `${at(queue)}/purge`, body: which});
const sum = (results, name) => results.reduce((total, result) => total + result[name], 0);
const redriven = (results) => sum(results, "redriven") ? `Moved ${counted(sum(results, "redriven"), "dead letter")} back.` : "Nothing was moved: leased dead letters stay until their lease ends.";
const purged = (results) => `Deleted ${counted(sum(results, "purged"), "message")}.`;

// A purge by reason is for the queue where the dead letters lie. Those that lie elsewhere may share that place with
// other queues' dead letters, so they are deleted by their ids.
async function deletingOf(reason, count) {
  const found = [];
  let next = `${at(shown)}/peek?${new URLSearchParams({state: "dead", reason, limit: 1000})}`;
  while (next) {
    const reply = await exchange({path: next});
    found.push(...reply.value);
    next = reply.next;
  }
  return found.length < count ? [...byId(found, purging), purging(shown, {reason})] : byId(found, purging);
}

// Requests for these messages, for each queue in which some lie, of at most 10,000 ids.
function byId(messages, request) {
  const requests = [];
  for (const [queue, ones] of Map.groupBy(messages, (message) => message.queue))
    for (let first = 0; first < ones.length; first += 10000) requests.push(request(queue, {ids: ones.slice(first, first + 10000).map((one) => one.id)}));
  return requests;
}

$("pause").onclick = () => {
  const pause = !stats.get(shown).paused;
  confirm({
    title: `${pause ? "Pause" : "Resume"} ${shown}?`, text: pause ? "The service stops deliveries from this queue. It still takes messages, and leases go on." : "The service delivers messages from this queue again.",
    name: pause ? "Pause" : "Resume", requests: [{method: "PUT", path: at(shown), body: {paused: pause}}], done: () => pause ? "Paused." : "Resumed.",
  });
};
$("redrive").onclick = async () => {
  try {
    const queue = shown, {reasons, complete} = await call({path: `${at(queue)}/reasons`}), count = sum(reasons, "dead_letters");
    if (!count) return say("This queue has no dead letters to redrive.");
    confirm({
      title: `Redrive ${lettersOf(count, complete)} of ${queue}?`, text: "They go back to the queue they came from, with a fresh count. Leased ones stay.",
      name: "Redrive", requests: [{method: "POST", path: `${at(queue)}/redrive`}], done: redriven,
    });
  } catch (fault) { fail(fault); }
};
$("purge").onclick = () => {
  const count = depth(stats.get(shown));
  confirm({
    title: `Purge ${count === 1 ? "the one message" : `all ${whole(count)} messages`} of ${shown}?`, name: "Purge", danger: true,
    text: "This removes them permanently, leased ones too. The number may have changed since the page was updated.",
    requests: [{method: "POST", path: `${at(shown)}/purge`}], done: (results) => `Purged ${counted(results[0].purged, "message")}.`,
  });
};
