// Asks, and follows the answer through every loss of the connection. The run's id stands in the address: a page that is
// loaded again, or opened on another device, follows the same run.

const base = new URLSearchParams(location.search).get("gateway") ?? "http://127.0.0.1:8283";
const agent = "agent-123e4567-e89b-42d3-8456-426614174000";
const [answer, state] = ["answer", "state"].map((id) => document.getElementById(id));

let source;
let run;
let last = 0; // The id of the last event that was seen.

const tell = (text) => {
  state.textContent = text;
};

// Start a run. Its first event names it; the rest is for the EventSource, which comes back by itself.
const ask = async (input) => {
  const response = await fetch(`${base}/v1/agents/${agent}/messages`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ streaming: true, background: true, input }),
  });
  if (!response.ok) throw new Error((await response.json()).detail);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (!text.includes("\n\n")) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection was lost before the run had a name.");
    text += value;
  }
  await reader.cancel();
  return JSON.parse(text.slice("data: ".length, text.indexOf("\n\n"))).run_id;
};

const follow = (after) => {
  source?.close();
  source = new EventSource(`${base}/v1/runs/${run}/stream?starting_after=${after}`);
  source.onopen = () => tell("Connected.");
  source.onmessage = ({ data, lastEventId }) => {
    last = Number(lastEventId) || last;
    if (data === "[DONE]") {
      source.close();
      tell("The run has ended.");
      return;
    }
    const { message_type: type, content } = JSON.parse(data);
    if (type === "assistant_message") answer.append(content);
  };
  source.addEventListener("run_error", ({ data, lastEventId }) => {
    last = Number(lastEventId) || last;
    answer.append(JSON.parse(data).message);
  });
  source.onerror = () =>
    tell(source.readyState === EventSource.CLOSED ? "The run is not there." : "Lost. The browser comes back by itself.");
};

const begin = (id) => {
  [run, last] = [id, 0];
  answer.textContent = "";
  follow(0);
};

document.getElementById("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    begin(await ask(document.getElementById("question").value));
    history.replaceState(null, "", `#${run}`);
  } catch (error) {
    tell(error.message);
  }
});
document.getElementById("cut").addEventListener("click", () => {
  source?.close();
  tell("Cut. The run goes on.");
});
document.getElementById("resume").addEventListener("click", () => run && follow(last));

const named = location.hash.slice(1);
if (named.startsWith("run-")) begin(named);
