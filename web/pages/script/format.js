"use strict";
// Display data from the service by textContent or as a number in an attribute, never as HTML.
const STATES = ["ready", "leased", "delayed", "blocked", "dead"];
const $ = (id) => document.getElementById(id);

function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function makeButton(text, onclick, name) {
  const button = make("button", text, name);
  button.type = "button";
  button.onclick = onclick;
  return button;
}

// Texts of messages may be written from right to left, whatever surrounds them.
function makeText(tag, text, name) {
  const node = make(tag, text, name);
  node.dir = "auto";
  return node;
}

// A live region is read aloud again at every change, so change nothing that is the same.
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const whole = (number) => number.toLocaleString("en");
const counted = (number, one, many = `${one}s`) => `${whole(number)} ${number === 1 ? one : many}`;
const rate = (number) => number === null ? "–" : number >= 100 || number === 0 ? whole(Math.round(number)) : number.toFixed(1);
const depth = (counts) => counts.ready + counts.leased + counts.delayed + counts.blocked;

function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${whole(Math.floor(seconds / size))} ${unit}`;
  return `${Math.max(0, Math.floor(seconds))} s`;
}

const since = (time) => `${age((Date.now() - Date.parse(time)) / 1000)} ago`;

function size(bytes) {
  for (const [unit, one] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6]]) if (bytes >= one) return `${(bytes / one).toFixed(bytes < 10 * one ? 1 : 0)} ${unit}`;
  return `${Math.ceil(bytes / 1e3)} kB`;
}

function say(text) {
  $("failed").hidden = true;
  $("said").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $("said").textContent = ""; }, 6000);
}

function fail(fault) {
  $("said").textContent = "";
  $("failed").hidden = false;
  put($("fault"), fault.message);
}
