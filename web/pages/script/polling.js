// Polling, while the page is visible, and what the address asks for.

const EVERY = 2000, SHARE = 20;  // ms; listing takes at most one part in so many of the time
let shown = "", known = false, answered = false, due = 0, took = EVERY / SHARE, failures = 0, timer = 0, asking = null, statusTimer = 0, statusRefused = false, before = null, left = 0;

async function listQueues(signal) {
  const began = performance.now(), found = new Map();
  for (let next = ""; next !== undefined;) {
    const page = await call({path: `queues?after=${encodeURIComponent(next)}`, signal});
    for (const {queue, stats: counts, paused} of page.queues) {
      found.set(queue, {...counts, paused});
      sample(queue, counts);
    }
    next = page.next;
    if (!known && next !== undefined) {
      stats = found;
      showAll();
      put($("pulse"), `listing, ${whole(found.size)} so far`);
    }
  }
  stats = found;
  for (const queue of past.keys()) if (!stats.has(queue)) past.delete(queue);
  known = true;
  const takes = performance.now() - began;
  due = performance.now() + SHARE * Math.min(takes, took);  // one that took long alone was delayed
  took = takes;
  showAll();
}

async function lookAtQueue(signal) {
  const queue = shown, {queues: [found]} = await call({path: `queues?${new URLSearchParams({prefix: queue, limit: 1})}`, signal});
  if (queue !== shown) return;
  answered = true;
  if (found?.queue === queue) {
    stats.set(queue, {...found.stats, paused: found.paused});
    sample(queue, found.stats);
  } else stats.delete(queue);
  showOne();
}

async function poll() {
  clearTimeout(timer);
  if (asking) asking.abort();
  const mine = asking = new AbortController();
  if (document.hidden) return;
  try {
    if (shown) await lookAtQueue(mine.signal);
    else if (performance.now() >= due) await listQueues(mine.signal);
    failures = 0;
    put($("pulse"), "live");
    $("pulse").className = "";
  } catch (fault) {
    if (mine.signal.aborted) return;
    failures += 1;
    put($("pulse"), fault.message);
    $("pulse").className = "lost";
  }
  $("sign").textContent = token() ? "Sign out" : "Sign in";
  if (token()) $("sign").hidden = false;
  if (mine === asking) timer = setTimeout(poll, Math.max(shown ? 0 : due - performance.now(), Math.min(EVERY * 2 ** failures, 30000)));
}

// The service itself. A token without the right for this sees only the queues.
async function pollStatus() {
  clearTimeout(statusTimer);
  if (document.hidden || statusRefused) return;
  try {
    const now = {...await call({path: "status"}), time: performance.now()};
    if (before?.started_at !== now.started_at) before = null;
    showStatus(now, before);
    before = now;
  } catch (fault) {
    statusRefused = fault.status === 401 || fault.status === 403;
    $("service").hidden = true;
  }
  statusTimer = setTimeout(pollStatus, EVERY);
}

function showStatus(now, before) {
  const seconds = before && (now.time - before.time) / 1000, commits = before && now.commits - before.commits;
  const errors = before && Math.max(0, now.errors - before.errors) / seconds;
  const facts = [
    [`version ${now.version}`], [now.engine],
    [`database ${size(now.database_bytes + (now.log_bytes || 0))}`],
    now.disk_free_bytes !== null && [`${size(now.disk_free_bytes)} of disk free`, now.disk_free_bytes < 5e8 && "dead"],
    [before ? `${rate(errors)} errors/s` : "", errors > 0 && "dead"],
    [commits > 0 ? `commits take ${((now.commit_seconds - before.commit_seconds) / commits * 1000).toFixed(1)} ms` : "no commits now"],
    [counted(now.waiting_readers, "waiting reader")],
  ];
  $("service").hidden = false;
  $("service").replaceChildren(...facts.filter((fact) => fact && fact[0]).map(([text, name]) => make("li", text, name || undefined)));
}

function go() {
  const [name, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  let wanted = "";
  try { wanted = decodeURIComponent(name); } catch { /* not a link of ours */ }
  const changed = wanted !== shown;
  if (!shown) left = scrollY;
  shown = wanted;
  $("all").hidden = shown !== "";
  $("one").hidden = shown === "";
  document.title = shown ? `${shown} · Queues` : "Queues";
  if (changed) dead = null;
  if (shown) showOne(); else showAll();
  if (!changed) return shown && searchFor(new URLSearchParams(query));
  $("failed").hidden = true;
  scrollTo(0, shown ? 0 : left);
  poll();
  if (!shown) return;
  $("messages").replaceChildren();
  $("dead").hidden = true;
  $("name").focus();
  searchFor(new URLSearchParams(query));
}

$("curl").textContent = curl({path: new URL("messages", document.baseURI).href, method: "POST", body: {text: "hello"}});
history.scrollRestoration = "manual";
addEventListener("hashchange", go);
document.addEventListener("visibilitychange", () => { poll(); pollStatus(); });
go();
if (!shown) poll();
pollStatus();
