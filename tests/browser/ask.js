// Posts a message with a credential and a library's header, reads the answer, and then a refusal.
const ask = async () => {
  const headers = { "Content-Type": "application/json", Authorization: "Bearer x", "X-Stainless-Lang": "js" };
  const body = JSON.stringify({ input: '{"chunks": 1}' });
  const created = await fetch(create, { method: "POST", headers, body });
  report({ type: "created", data: await created.text() });
  const refused = await fetch(refuse, { headers });
  report({ type: "refused", data: (await refused.json()).detail });
};
ask().catch((error) => report({ type: "kept from it", data: String(error) }));
