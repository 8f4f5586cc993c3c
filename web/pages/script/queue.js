// One queue: its figures, and what can be done with all of it.

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
}

const redriving = (queue, which) => ({method: "POST", path: `${at(queue)}/redrive`, body: which});
const purging = (queue, which) => ({method: "POST", path: `${at(queue)}/purge`, body: which});
const sum = (results, name) => results.reduce((total, result) => total + result[name], 0);
const redriven = (results) => sum(results, "redriven") ? `Moved ${counted(sum(results, "redriven"), "dead letter")} back.` : "Nothing was moved: leased dead letters stay until their lease ends.";
const purged = (results) => `Deleted ${counted(sum(results, "purged"), "message")}.`;

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
$("redrive").onclick = () => confirm({
  title: `Redrive all dead letters of ${shown}?`, text: stats.get(shown).dead ? `${counted(stats.get(shown).dead, "message")} from this queue died. They go back to it with a fresh count. Leased ones stay.` : "All dead letters in this queue go back to the queue they came from, with a fresh count. Leased ones stay.",
  name: "Redrive", requests: [{method: "POST", path: `${at(shown)}/redrive`}],
  done: (results) => sum(results, "redriven") ? redriven(results) : "This queue has no dead letters to redrive.",
});
$("purge").onclick = () => {
  const count = depth(stats.get(shown));
  confirm({
    title: `Purge ${count === 1 ? "the one message" : `all ${whole(count)} messages`} of ${shown}?`, name: "Purge", danger: true,
    text: "This removes them permanently, leased ones too. The number may have changed since the page was updated.",
    requests: [{method: "POST", path: `${at(shown)}/purge`}], done: (results) => `Purged ${counted(results[0].purged, "message")}.`,
  });
};
