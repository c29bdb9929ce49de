// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n) => whole.format(n);

export function short(n) {
  if (n >= 1e6) return `${(n / 1e6).toFixed(1)}M`;
  return n >= 1e4 ? `${(n / 1e3).toFixed(0)}k` : n >= 1e3 ? `${(n / 1e3).toFixed(1)}k` : String(n);
}

export const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)} %`;

export function rate(n) {
  return n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2);
}

export function seconds(s) {
  if (s === null || s === undefined) return "–";
  if (s === 0) return "0 s";
  if (s < 0.0995) return `${(s * 1e3).toFixed(s < 0.00995 ? 1 : 0)} ms`;
  return s < 100 ? `${s.toFixed(s < 10 ? 2 : 1)} s` : `${Math.round(s)} s`;
}

// How an outcome is coloured: whole answers, ends by the client's own wish, failures.
export function outcomeMark(outcome) {
  if (outcome === "stop" || outcome === "length") return "good";
  return outcome === null || outcome === "client_left" || outcome === "cancelled" ? "" : "bad";
}

export const clock = (date) => date.toLocaleTimeString("en-GB");
