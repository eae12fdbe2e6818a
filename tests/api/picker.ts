// A user of the region picker and of the monitor, so that a wrong type does not compile.

import { RegionMonitor } from "../../proxyhealth/static/proxyhealth/region_monitor.js";
import type { MonitoredRegion, RegionChange } from "../../proxyhealth/static/proxyhealth/region_monitor.js";
import { RegionPicker, TEXTS } from "../../proxyhealth/static/proxyhealth/region_picker.js";

function describe({ region, previous }: RegionChange): string {
  const names = [previous, region].map((each: MonitoredRegion | null) => each?.display_name ?? "none");
  return `${names.join(" to ")} ${region?.latency_ms?.toFixed(0) ?? ""} ${region?.status?.report.errors[0] ?? ""}`;
}

export function addPicker(token: string): RegionPicker {
  const picker = document.createElement("proxyhealth-region-picker");
  picker.texts = { ...TEXTS, legend: "Région" };
  picker.headers = async () => ({ Authorization: `Bearer ${token}` });
  picker.addEventListener("region-change", ({ detail }) => console.log(describe(detail)));
  document.body.append(picker);
  return picker;
}

export function watch(): RegionMonitor {
  const monitor = new RegionMonitor({ src: "https://api.example.com/api/v2/regions", credentials: "include", poll: 10 });
  monitor.addEventListener("region-change", ({ detail }) => console.log(describe(detail)));
  monitor.addEventListener("update", () => {
    const { connection, error, updatedAt } = monitor;
    console.log(connection.state === "fallback" && connection.lost, error?.code === "refused" && error.status);
    console.log(monitor.outdated, monitor.stale, monitor.staleReason.trim(), updatedAt?.toISOString());
  });
  monitor.choose(monitor.regions[0]?.id ?? null);
  monitor.start();
  return monitor;
}
