// What a dashboard may hold: Grafana's own types, narrowed by the kind of panel, so that a misspelt option is an error. Grafana
// publishes no types of what its Prometheus data source, its transformations and the plugin Diagram take: those that are
// used here are written down below.
import {
  AnnotationQuery, Dashboard, DashboardLink, DataSourceRef, FieldColor, FieldConfig, GraphFieldConfig, GridPos, LineStyle,
  ScaleDistributionConfig, HideableFieldConfig, TableCellOptions, TableFieldOptions, ThresholdsConfig, VariableModel,
} from '@grafana/schema';
import { Options as BarGaugeOptions } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import { Options as HeatmapOptions } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import { Options as NodeGraphOptions } from '@grafana/schema/dist/esm/raw/composable/nodegraph/panelcfg/x/NodeGraphPanelCfg_types.gen';
import { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import { Options as TableOptions } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import { Options as TextOptions } from '@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import { Options as TimeSeriesOptions } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

interface DataLink {
  title: string;
  url: string;
  targetBlank?: boolean;
}

interface PrometheusQuery {
  refId: string;
  datasource: DataSourceRef;
  expr: string;
  legendFormat?: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  range: boolean;
  editorMode: 'code';
}

/** @discriminator id */
type Transformation =
  | { id: 'merge'; options: {} }
  | { id: 'filterFieldsByName'; options: { include: { names: string[] } } }
  | {
      id: 'organize';
      options: {
        indexByName: Record<string, number>;
        renameByName: Record<string, string>;
        excludeByName: Record<string, boolean>;
      };
    }
  | {
      id: 'calculateField';
      options: {
        mode: 'binary';
        alias: string;
        replaceFields: boolean;
        timeSeries: boolean;
        binary: { left: string; operator: '+' | '-' | '*' | '/'; right: string };
      };
    };

/** @discriminator id */
type Property =
  | { id: 'unit'; value: string }
  | { id: 'thresholds'; value: ThresholdsConfig }
  | { id: 'color'; value: FieldColor }
  | { id: 'links'; value: DataLink[] }
  | { id: 'custom.width'; value: number }
  | { id: 'custom.cellOptions'; value: TableCellOptions }
  | { id: 'custom.lineStyle'; value: LineStyle }
  | { id: 'custom.lineWidth'; value: number }
  | { id: 'custom.fillOpacity'; value: number };

interface Fields<Custom> {
  defaults: Omit<FieldConfig, 'custom' | 'links'> & { custom?: Custom; links?: DataLink[] };
  overrides: Array<{
    matcher: { id: 'byName' | 'byRegexp'; options: string };
    properties: Property[];
  }>;
}

interface Place {
  id: number;
  title: string;
  gridPos: GridPos;
}

interface DataPanel<Kind, Options, Custom> extends Place {
  type: Kind;
  description: string;
  datasource: DataSourceRef;
  targets: PrometheusQuery[];
  interval?: string;
  transformations?: Transformation[];
  fieldConfig: Fields<Custom>;
  options: Options;
  links?: DashboardLink[];
}

interface TextPanel extends Place {
  type: 'text';
  options: TextOptions;
}

interface DiagramOptions {
  content: string;
  mode: 'content' | 'url';
  valueName: 'mean' | 'min' | 'max' | 'sum' | 'last' | 'name';
  legend: {
    show: boolean;
    asTable: boolean;
    hideEmpty: boolean;
    hideZero: boolean;
    placement: 'under' | 'right';
    displayMode: 'table' | 'list';
    stats: string[];
    sortBy: string;
    sortDesc: boolean;
    gradient: { enabled: boolean; show: boolean };
  };
  nodeSize: { minWidth: number; minHeight: number };
  composites: string[];
  maxWidth: boolean;
  style: string;
  pluginVersion: string;
  moddedSeriesVal: number;
  mermaidServiceUrl: string;
  useBasicAuth: boolean;
  authUsername: string;
  authPassword: string;
  metricCharacterReplacements: string[];
  mermaidThemeVariablesDark: Record<string, Record<string, string>>;
  mermaidThemeVariablesLight: Record<string, Record<string, string>>;
  useBackground: boolean;
}

/** @discriminator type */
type OnePanel =
  | TextPanel
  | DataPanel<'timeseries', TimeSeriesOptions, GraphFieldConfig>
  | DataPanel<'stat', StatOptions, {}>
  | DataPanel<'bargauge', BarGaugeOptions, {}>
  | DataPanel<'table', TableOptions, TableFieldOptions>
  | DataPanel<'heatmap', HeatmapOptions, HideableFieldConfig & { scaleDistribution?: ScaleDistributionConfig }>
  | DataPanel<'nodeGraph', NodeGraphOptions, {}>
  | DataPanel<'jdbranham-diagram-panel', DiagramOptions, { valueName: 'last' }>;

interface Row extends Place {
  type: 'row';
  collapsed: boolean;
  panels: OnePanel[];
}

// The Prometheus data source reads these beside what every annotation has.
type Annotation = Omit<AnnotationQuery, 'target'> & {
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  tagKeys: string;
};

/** @discriminator type */
type PanelOrRow =
  | TextPanel
  | DataPanel<'timeseries', TimeSeriesOptions, GraphFieldConfig>
  | DataPanel<'stat', StatOptions, {}>
  | DataPanel<'bargauge', BarGaugeOptions, {}>
  | DataPanel<'table', TableOptions, TableFieldOptions>
  | DataPanel<'heatmap', HeatmapOptions, HideableFieldConfig & { scaleDistribution?: ScaleDistributionConfig }>
  | DataPanel<'nodeGraph', NodeGraphOptions, {}>
  | DataPanel<'jdbranham-diagram-panel', DiagramOptions, { valueName: 'last' }>
  | Row;

export type LagMonitorDashboard = Omit<Dashboard, 'panels' | 'annotations' | 'templating'> & {
  panels: PanelOrRow[];
  annotations: { list: Annotation[] };
  templating: { list: VariableModel[] };
};
