import type { RegionChange, RegionMonitor, RegionMonitorOptions } from "./region_monitor.js";

/** The texts of the picker in English, by name. A name in braces stands for a value. */
export const TEXTS: Readonly<Record<string, string>>;

/** The element `<proxyhealth-region-picker>`. Its event `region-change` bubbles. */
export class RegionPicker extends HTMLElement {
  /** Texts in place of those of `TEXTS`. Set them before the element is added to a page. */
  texts: Readonly<Record<string, string>>;
  /** Headers of the requests to the server, for example a token. */
  set headers(headers: RegionMonitorOptions["headers"]);
  /** The regions that the picker shows. */
  readonly monitor: RegionMonitor;
}

declare global {
  interface HTMLElementTagNameMap {
    "proxyhealth-region-picker": RegionPicker;
  }
  interface GlobalEventHandlersEventMap {
    "region-change": CustomEvent<RegionChange>;
  }
}
