// The WebSocket: one connection for the whole page, which comes back by itself and asks for what it follows again.

const BACK_OFF_MS = [250, 500, 1000, 2000, 4000, 8000];
const SILENT_MS = 6000; // The server says something each second: silence for longer is a dead connection.

/** Events: "state" ({state, wait_ms}), "status" (the server's each-second word), "message" (snapshot, delta, error). */
export class Live extends EventTarget {
  constructor() {
    super();
    this.state = "connecting";
    this.status = null;
    this.follows = null; // {symbol, interval, history, from()}
    this.tries = 0;
    this.heardAt = 0;
    this.socket = null;
    this.timer = 0;
    setInterval(() => this.watch(), 1000);
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.hurry(); });
    this.connect();
  }

  /** Follow one symbol's bars instead of what was followed; `from()` tells the position to go on at, or null. */
  follow(wanted) {
    const before = this.follows;
    this.follows = wanted;
    if (before && wanted && before.symbol === wanted.symbol) this.send({ op: "unsubscribe", symbols: [before.symbol] });
    else if (before) this.send({ op: "unsubscribe", symbols: [before.symbol] });
    this.subscribe();
  }

  subscribe() {
    const { symbol, interval, history, from } = this.follows ?? {};
    if (symbol) this.send({ op: "subscribe", symbols: [symbol], interval, history, from: from() });
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  connect() {
    clearTimeout(this.timer);
    this.become("connecting");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws/v1`);
    this.socket = socket;
    this.heardAt = Date.now();
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.become("live");
      this.subscribe();
    };
    socket.onmessage = (event) => {
      this.heardAt = Date.now();
      const message = JSON.parse(event.data);
      if (message.op === "status") {
        this.tries = 0;
        this.status = message;
        this.tell("status", message);
      } else {
        this.tell("message", message);
      }
    };
    socket.onclose = (event) => {
      if (this.socket !== socket) return;
      this.socket = null;
      if (!opened || event.code === 1008) this.tell("refused", { code: event.code, reason: event.reason });
      const most = BACK_OFF_MS[Math.min(this.tries, BACK_OFF_MS.length - 1)];
      this.tries += 1;
      const wait_ms = most * (0.5 + Math.random() / 2); // Many pages must not come back in the same moment.
      this.become("waiting", wait_ms);
      this.timer = setTimeout(() => this.connect(), wait_ms);
    };
  }

  watch() {
    if (this.socket && Date.now() - this.heardAt > SILENT_MS) {
      const dead = this.socket;
      const ended = dead.onclose;
      dead.onclose = null;
      dead.close();
      ended?.({ code: 1006, reason: "silent" });
    }
  }

  hurry() {
    if (!this.socket) {
      this.tries = 0;
      this.connect();
    }
  }

  become(state, wait_ms = 0) {
    this.state = state;
    this.tell("state", { state, wait_ms });
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
