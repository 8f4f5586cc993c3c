// Requests to the service. All paths are relative, so that a proxy may serve the page under a path of its own.

const ADVICE = {
  forbidden: "Sign in with a token that has this right.",
  cross_origin: "Open the page at the service's own address, or let the proxy pass on the Host.",
  message_not_found: "It was acked, moved, purged or expired meanwhile. Refresh the list.",
  message_leased: "Wait until its lease ends, and try again.",
  precondition_failed: "Another client changed the settings meanwhile. Load them again, then repeat your change.",
  queue_full: "Read or purge messages, or raise the limit in the settings.",
  busy: "Nothing was done. Try again in a few seconds.",
  disk_full: "Nothing was done. Purge messages or free disk space, then try again.",
  interrupted: "Do it again to finish the rest.",
  unavailable: "Refresh to see whether it was done.",
};

class Refused extends Error {
  constructor(status, {code, detail, title}) {
    const text = `${detail || title || `The service replied with status ${status}`}`.replace(/[^.!?]$/, "$&.");
    super([text[0].toUpperCase() + text.slice(1), ADVICE[code]].filter(Boolean).join(" "));
    this.status = status;
    this.code = code;
  }
}

const token = () => sessionStorage.getItem("token");
const at = (queue) => `queues/${encodeURIComponent(queue)}`;

// Return the reply's value, the address of the next page, and the version of settings.
async function exchange({method = "GET", path, body, version, signal}) {
  const headers = {Accept: "application/json"};
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (version) headers["If-Match"] = version;
  if (method !== "GET") headers["Idempotency-Key"] = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const options = {method, headers, body: body && JSON.stringify(body), signal, credentials: "omit", cache: "no-store"};
  let reply, text;
  try {
    reply = await fetch(path, options);
    text = await reply.text();
  } catch (fault) {
    if (signal?.aborted) throw fault;
    throw new Refused(0, {detail: "The service does not respond. Check that it runs and that you are connected."});
  }
  let value = {};
  try { value = text ? JSON.parse(text) : {}; } catch { value = {detail: "The reply is not from this service. Check the proxy."}; }
  if (reply.ok) {
    const [, next] = reply.headers.get("Link")?.match(/<([^>]*)>;\s*rel="?next"?/) || [];
    return {value, next: next && new URL(next, reply.url).href, version: reply.headers.get("ETag")};
  }
  if (reply.status === 401) askForToken(token() ? "The service does not know this token." : "");
  throw new Refused(reply.status, value);
}

const call = async (request) => (await exchange(request)).value;

// As a line for a shell.

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl({method = "GET", path, body, version}) {
  const parts = ["curl"];
  if (method !== (body === undefined ? "GET" : "POST")) parts.push("-X", method);
  if (token()) parts.push('-H "Authorization: Bearer $QUEUE_TOKEN"');
  if (version) parts.push("-H", quote(`If-Match: ${version}`));
  if (body !== undefined) parts.push("-d", quote(JSON.stringify(body)));
  return [...parts, quote(new URL(path, document.baseURI).href)].join(" ");
}

async function copy(button, requests) {
  const text = requests.map(curl).join("\n");
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy as curl"; }, 3000);
  } catch {  // no right to it: over plain HTTP a browser has no clipboard
    $("line").value = text;
    $("copying").showModal();
    $("line").select();
  }
}
