/** A region as `/api/v2/regions` returns it, with what the browser measured. */
export interface MonitoredRegion {
  readonly id: string;
  readonly name: string;
  readonly display_name: string;
  readonly icon_url: string;
  readonly healthy: boolean;
  readonly path_app_url: string;
  readonly wildcard_hostname: string;
  /** The median of the measured latencies in milliseconds. Null without a measurement. */
  readonly latency_ms: number | null;
  /** True if the latency was measured, even without success. */
  readonly measured: boolean;
  /** The status of a region that is not healthy, if the option `details` is set and the user may read it. */
  readonly status: RegionStatus | null;
}

export interface RegionStatus {
  readonly status: string;
  readonly reason: string;
  readonly report: { readonly errors: readonly string[]; readonly warnings: readonly string[] };
  readonly checked_at: string | null;
  readonly latency_ms: number | null;
}

export interface RegionMonitorOptions {
  /** The URL of the regions. Default: `/api/v2/regions`. */
  src?: string | null;
  /** The URL of the proxies, for users with the permission to see their statuses. */
  details?: string | null;
  /** As in `fetch()`. Default: `same-origin`. Set `include` for a session cookie of another origin. */
  credentials?: RequestCredentials | null;
  /** Headers of the requests to the server, for example a token. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>) | null;
  /** Seconds between two polls. Default: 5. */
  poll?: number | null;
  /** Seconds between two measurements of a region. Default: 30. */
  measure?: number | null;
}

export type RegionErrorCode = "timeout" | "unexpected" | "unreachable" | "refused" | "signedOut";

export interface RegionConnection {
  readonly state: "loading" | "chosen" | "nearest" | "fallback" | "looking" | "unavailable" | "empty";
  /** The name of the region, or an empty text. */
  readonly region: string;
  /** The name of the region that is not available, or an empty text. */
  readonly lost: string;
  /** True if another region was used before. */
  readonly moved: boolean;
  /** True if the chosen region is available again. */
  readonly returned: boolean;
}

/** The detail of the event `region-change`. */
export interface RegionChange {
  readonly region: MonitoredRegion | null;
  readonly previous: MonitoredRegion | null;
}

export interface RegionMonitorEvents {
  update: CustomEvent<null>;
  "region-change": CustomEvent<RegionChange>;
}

/** The regions without a user interface. Events: `update` after each change, and `region-change`. */
export class RegionMonitor extends EventTarget {
  constructor(options?: RegionMonitorOptions);
  /** Change some options, from the next request on. Null sets the default. */
  configure(options: RegionMonitorOptions): void;
  start(): void;
  stop(): void;
  /** Use the region with this id as long as it is healthy. With null, use the nearest one. */
  choose(id: string | null): void;
  /** The region to use, or null. */
  readonly region: MonitoredRegion | null;
  /** All regions: the healthy ones first, then by latency and by name. */
  readonly regions: readonly MonitoredRegion[];
  /** The choice of the user. It is kept while that region is not available. */
  readonly chosen: { readonly id: string; readonly name: string } | null;
  /** True after the first list of regions. */
  readonly loaded: boolean;
  /** The time of the last list that was not stale. */
  readonly updatedAt: Date | null;
  /** True if the regions may be out of date: after an error, while the list is stale, or after a pause. */
  readonly outdated: boolean;
  /** True if the server says that its data may be out of date. */
  readonly stale: boolean;
  readonly staleReason: string;
  /** The error of the last poll, or null. */
  readonly error: { readonly code: RegionErrorCode; readonly status?: number } | null;
  readonly connection: RegionConnection;
  addEventListener<K extends keyof RegionMonitorEvents>(
    type: K,
    listener: (event: RegionMonitorEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof RegionMonitorEvents>(
    type: K,
    listener: (event: RegionMonitorEvents[K]) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}
