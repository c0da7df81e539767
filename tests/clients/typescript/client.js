// Letta's TypeScript client, unmodified: plays one scenario, and tells what it was given as lines of JSON.
//
//   node client.js SCENARIO '{"gateways": ["http://…"], …}'
import Letta from "@letta-ai/letta-client";

const [scenario, argument] = process.argv.slice(2);
const { gateways, ...options } = JSON.parse(argument);

let requests = 0;
const counted = (...request) => {
  requests += 1;
  return fetch(...request);
};
const clients = gateways.map((baseURL) => new Letta({ baseURL, apiKey: "dummy", fetch: counted }));
const [letta] = clients;

const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

// All that a program can tell an error by.
const described = ({ constructor, status, message, error, cause }) => ({
  raised: constructor.name,
  status: status ?? null,
  message,
  body: error ?? null,
  cause: cause?.code ?? null,
});

// Follows a run until so many messages are in `seen`, or to its end. What has no cursor of its own, a stop reason, is
// forgotten: it comes again.
const readOn = async (client, runId, seen, limit) => {
  const last = seen.findLastIndex(({ seq_id }) => seq_id != null);
  seen.length = last + 1;
  const stream = await client.runs.messages.stream(runId, { starting_after: seen[last]?.seq_id ?? 0 });
  if (limit === 0) {
    stream.controller.abort();
    return;
  }
  for await (const message of stream) {
    seen.push(message);
    tell({ at: seen.length });
    if (seen.length === limit) {
      return; // which closes the connection
    }
  }
};

// Follows a run to its end, but leaves at each of the cuts, numbers of messages, and comes back to the next gateway. One
// whose connection is lost is not asked again.
const journey = async ({ run_id, cuts }) => {
  const seen = [];
  const losses = [];
  const living = [...clients];
  for (const limit of [...cuts, Infinity]) {
    try {
      await readOn(living[0], run_id, seen, limit);
    } catch (error) {
      losses.push({ at: seen.length, ...described(error) });
      living.shift();
      await readOn(living[0], run_id, seen, limit);
    }
    living.push(living.shift());
  }
  tell({ seen, losses });
};

const scenarios = {
  journey,

  // A reader for each of the cuts, all at the same time.
  journeys: ({ run_id, cuts }) => Promise.all(cuts.map((cut) => journey({ run_id, cuts: [cut] }))),

  // Calls one after the other, such as ["runs.retrieve", "run-…"]: what comes back, message by message if it is a stream.
  async calls({ calls }) {
    for (const [path, ...args] of calls) {
      const names = path.split(".");
      const method = names.pop();
      const resource = names.reduce((outer, name) => outer[name], letta);
      const before = requests;
      const messages = [];
      try {
        const answer = await resource[method](...args);
        if (answer?.[Symbol.asyncIterator]) {
          for await (const message of answer) {
            messages.push(message);
          }
          tell({ messages, requests: requests - before });
        } else {
          tell({ answer, requests: requests - before });
        }
      } catch (error) {
        tell({ messages, ...described(error), requests: requests - before });
      }
    }
  },

  // A conversation, a message in it, and a cancel once so many messages of the answer are there.
  async cancel({ agent_id, body, after }) {
    const { id } = await letta.conversations.create({ agent_id });
    const seen = [];
    let cancelling;
    for await (const message of await letta.conversations.messages.create(id, body)) {
      seen.push(message);
      if (seen.length === after) {
        cancelling = letta.conversations.cancel(id);
      }
    }
    tell({ seen, answer: await cancelling, run: await letta.runs.retrieve(seen[0].run_id) });
  },
};

await scenarios[scenario](options);
