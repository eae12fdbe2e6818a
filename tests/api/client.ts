// A client of the JSON API that uses every field, so that a wrong type does not compile.

import type {
  Acknowledgement,
  History,
  Message,
  NextCursor,
  Outage,
  OutageList,
  PastStatus,
  Proxy,
  ProxyList,
  ProxyStatus,
  RawStatus,
  Reason,
  RecentProbe,
  Region,
  RegionList,
  Report,
  Snapshot,
  Status,
  Transition,
  Uptime,
  operations,
  paths,
} from "../../proxyhealth/api/openapi";

type ProxyQuery = NonNullable<operations["listProxies"]["parameters"]["query"]>;
type HistoryQuery = NonNullable<operations["getHistory"]["parameters"]["query"]>;
type OutageQuery = NonNullable<operations["listOutages"]["parameters"]["query"]>;
type RegionQuery = NonNullable<operations["listRegions"]["parameters"]["query"]>;

const PROXIES = "/api/v2/workspaceproxies" satisfies keyof paths;
const REGIONS = "/api/v2/regions" satisfies keyof paths;

export class ApiError extends Error {
  constructor(readonly status: number, body: Message) {
    super(body.detail === "" ? body.message : `${body.message} ${body.detail}`);
  }
}

interface Page<T> {
  body: T;
  etag: string | null;
}

async function get<T>(url: string, etag: string | null = null): Promise<Page<T> | null> {
  const response = await fetch(url, etag === null ? {} : { headers: { "If-None-Match": etag } });
  if (response.status === 304) return null;
  if (!response.ok) throw new ApiError(response.status, (await response.json()) as Message);
  return { body: (await response.json()) as T, etag: response.headers.get("ETag") };
}

function search(query: ProxyQuery | RegionQuery): string {
  const search = new URLSearchParams();
  if ("status" in query) for (const status of query.status ?? []) search.append("status", status);
  if ("healthy" in query && query.healthy !== undefined) search.set("healthy", String(query.healthy));
  if (query.q !== undefined) search.set("q", query.q);
  if (query.limit !== undefined) search.set("limit", String(query.limit));
  if (query.cursor !== undefined) search.set("cursor", query.cursor);
  return `?${search}`;
}

export async function* allProxies(query: ProxyQuery): AsyncGenerator<Proxy> {
  let cursor: NextCursor | undefined = query.cursor;
  do {
    const page: Page<ProxyList> | null = await get(PROXIES + search(cursor ? { ...query, cursor } : query));
    if (page === null) return;
    yield* page.body.regions;
    cursor = page.body.next_cursor;
  } while (cursor);
}

export async function usableRegions(): Promise<string[]> {
  const page = await get<RegionList>(REGIONS + search({ healthy: true }));
  return page === null ? [] : page.body.regions.map(describeRegion);
}

export async function check(idOrName: Proxy["id"] | Proxy["name"], csrfToken: string): Promise<Message> {
  const path = "/api/v2/workspaceproxies/{id_or_name}/check" satisfies keyof paths;
  const response = await fetch(path.replace("{id_or_name}", encodeURIComponent(idOrName)), {
    method: "POST",
    headers: { "X-CSRFToken": csrfToken },
  });
  const body = (await response.json()) as Message;
  if (response.status !== 202) throw new ApiError(response.status, body);
  return body;
}

export async function outages(id: Proxy["id"], query: HistoryQuery): Promise<string[]> {
  const path = "/api/v2/workspaceproxies/{id_or_name}/history" satisfies keyof paths;
  const search = new URLSearchParams();
  if (query.before !== undefined) search.set("before", query.before);
  if (query.limit !== undefined) search.set("limit", String(query.limit));
  const page = await get<History>(`${path.replace("{id_or_name}", encodeURIComponent(id))}?${search}`);
  if (page === null) return [];
  const { transitions, uptime, recent, next_cursor, stale, stale_reason } = page.body;
  const note: string = stale ? stale_reason : "";
  const rest: string[] = next_cursor === null ? [] : await outages(id, { ...query, before: next_cursor });
  return [note, describeUptime(uptime), ...recent.map(describeProbe), ...transitions.map(describeTransition), ...rest];
}

export async function allOutages(query: OutageQuery): Promise<string[]> {
  const path = "/api/v2/workspaceproxies/outages" satisfies keyof paths;
  const search = new URLSearchParams();
  if (query.open !== undefined) search.set("open", String(query.open));
  if (query.before !== undefined) search.set("before", query.before);
  if (query.limit !== undefined) search.set("limit", String(query.limit));
  const page = await get<OutageList>(`${path}?${search}`);
  if (page === null) return [];
  const { outages, next_cursor, stale, stale_reason } = page.body;
  const note: string = stale ? stale_reason : "";
  const rest: string[] = next_cursor === null ? [] : await allOutages({ ...query, before: next_cursor });
  return [note, ...outages.map(describeOutage), ...rest];
}

function describeOutage(outage: Outage): string {
  const { outage: id, proxy_id, name, status, reason, began_at, ended_at, seconds, acknowledged } = outage;
  const end: number = ended_at === null ? NaN : Date.parse(ended_at);
  const texts: string[] = [id.toFixed(0), proxy_id.trim(), name.trim(), LABELS[status], reason];
  return `${texts} ${Date.parse(began_at)} ${end} ${seconds?.toFixed(0) ?? ""} ${describeAcknowledgement(acknowledged)}`;
}

function describeAcknowledgement(acknowledgement: Acknowledgement | null): string {
  if (acknowledgement === null) return "";
  const { by, at, note } = acknowledgement;
  return `${by.trim()} ${Date.parse(at)} ${note.trim()}`;
}

function describeTransition({ transition, name, before, after, at, reason, report }: Transition): string {
  const ended: boolean = after === ("removed" satisfies PastStatus);
  return `${transition.toFixed(0)} ${name.trim()} ${before} ${ended} ${Date.parse(at)} ${reason} ${describeReport(report)}`;
}

function describeUptime(uptime: Uptime): string {
  const shares: (number | null)[] = [uptime["24h"], uptime["7d"], uptime["30d"], uptime["90d"]];
  return shares.map((share) => (share === null ? "?" : share.toFixed(4))).join(" ");
}

function describeProbe({ at, status, reason, latency_ms }: RecentProbe): string {
  return `${Date.parse(at)} ${LABELS[status]} ${reason} ${latency_ms?.toFixed(0) ?? ""}`;
}

function describeRaw({ status, reason, report, checked_at }: RawStatus): string {
  return `${LABELS[status]} ${reason} ${describeReport(report)} ${checked_at ?? ""}`;
}

function describeRegion(region: Region): string {
  const { id, name, display_name, icon_url, healthy, path_app_url, wildcard_hostname } = region;
  const texts: string[] = [id, name, display_name, icon_url, path_app_url, wildcard_hostname];
  const usable: boolean = healthy;
  return `${texts.join(" ")} ${usable}`;
}

const LABELS: Record<Status, string> = {
  ok: "usable",
  unhealthy: "reports errors",
  unreachable: "offline",
  unregistered: "not registered",
  unknown: "not probed yet",
};

const OUR_REASONS: readonly Reason[] = ["invalid_url", "blocked", "internal"];

function describeReport(report: Report): string[] {
  return [...report.errors, ...report.warnings];
}

function describeStatus(status: ProxyStatus): string {
  const latency: number | null = status.latency_ms;
  const checked = status.checked_at === null ? "never" : new Date(status.checked_at).toISOString();
  const origin = OUR_REASONS.includes(status.reason) ? "control plane" : "proxy";
  const reports = describeReport(status.report).join("; ");
  const since: number = status.since === null ? NaN : Date.parse(status.since);
  const doubt: string = status.raw === undefined ? "" : describeRaw(status.raw);
  const silence: number = status.silenced === null ? NaN : Date.parse(status.silenced);
  const marks: string = `${silence} ${describeAcknowledgement(status.acknowledged)}`;
  return `${LABELS[status.status]} ${origin} ${reports} ${checked} ${latency === null ? "" : latency.toFixed(1)} ${since} ${doubt} ${marks}`;
}

export function describeProxy(proxy: Proxy): string {
  const life = [new Date(proxy.created_at), new Date(proxy.updated_at)].map((moment) => moment.getTime());
  const deleted: boolean = proxy.deleted;
  const labels: string[] = Object.entries(proxy.labels).map(([key, value]) => `${key}: ${value.trim()}`);
  return `${describeRegion(proxy)} ${describeStatus(proxy.status)} ${life} ${deleted} ${proxy.version.trim()} ${labels}`;
}

export function describeSnapshot(snapshot: Snapshot): string {
  const { number, checked_at, duration_ms, stale_at, stale, stale_reason } = snapshot;
  const age: number = checked_at === null ? Infinity : Date.now() - Date.parse(checked_at);
  const left: number = stale_at === null ? 0 : Date.parse(stale_at) - Date.now();
  const took: number = duration_ms ?? 0;
  const flag: boolean = stale;
  return `${number.toFixed(0)} ${age} ${took} ${left} ${flag} ${stale_reason.trim()}`;
}

export async function poll(etag: string | null): Promise<string | null> {
  const page = await get<ProxyList>(PROXIES, etag);
  if (page === null) return etag;
  const { stale, stale_reason }: { stale: boolean; stale_reason: string } = page.body;
  console.log(stale, stale_reason, describeSnapshot(page.body.snapshot), page.body.regions.map(describeProxy));
  return page.etag;
}
