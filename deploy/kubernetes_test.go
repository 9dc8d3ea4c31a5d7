package deploy

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	rulesFile      = "../rules/lag-monitor.rules.yaml"
	prometheusRule = "kubernetes/standalone/prometheusrule.yaml"
)

// kinds are the objects that the manifests may hold, each a pointer to an empty one.
var kinds = map[metav1.TypeMeta]func() any{
	{APIVersion: "v1", Kind: "ConfigMap"}:                            func() any { return new(corev1.ConfigMap) },
	{APIVersion: "v1", Kind: "Service"}:                              func() any { return new(corev1.Service) },
	{APIVersion: "apps/v1", Kind: "Deployment"}:                      func() any { return new(appsv1.Deployment) },
	{APIVersion: "monitoring.coreos.com/v1", Kind: "ServiceMonitor"}: func() any { return new(monitoringv1.ServiceMonitor) },
	{APIVersion: "monitoring.coreos.com/v1", Kind: "PodMonitor"}:     func() any { return new(monitoringv1.PodMonitor) },
	{APIVersion: "monitoring.coreos.com/v1", Kind: "PrometheusRule"}: func() any { return new(monitoringv1.PrometheusRule) },
}

// objects builds a kustomization and decodes what comes out strictly: an unknown or doubled key is an error.
func objects(t *testing.T, dir string) []any {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var objects []any
	for _, r := range built.Resources() {
		b, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, decode(t, b))
	}
	return objects
}

func decode(t *testing.T, b []byte) any {
	t.Helper()
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(b, &meta); err != nil {
		t.Fatal(err)
	}
	empty, ok := kinds[meta]
	if !ok {
		t.Fatalf("no type for %v", meta)
	}
	object := empty()
	if err := yaml.UnmarshalStrict(b, object); err != nil {
		t.Fatalf("%s: %v", meta.Kind, err)
	}
	return object
}

// Each manifest decodes strictly on its own as well, and none is left out of its kustomization.
func TestManifests(t *testing.T) {
	for _, dir := range []string{"kubernetes/standalone", "kubernetes/sidecar"} {
		files, err := filepath.Glob(dir + "/*.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if filepath.Base(file) == "kustomization.yaml" {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			decode(t, b)
		}
		if built := objects(t, dir); len(built) != len(files)-1 {
			t.Errorf("%s has %d manifests, and its kustomization gives %d objects", dir, len(files)-1, len(built))
		}
	}
}

func TestPods(t *testing.T) {
	for _, c := range []struct {
		dir     string
		sidecar bool
	}{{"kubernetes/standalone", false}, {"kubernetes/sidecar", true}} {
		t.Run(filepath.Base(c.dir), func(t *testing.T) {
			var deployment *appsv1.Deployment
			configMaps := map[string]*corev1.ConfigMap{}
			for _, o := range objects(t, c.dir) {
				switch o := o.(type) {
				case *appsv1.Deployment:
					deployment = o
				case *corev1.ConfigMap:
					configMaps[o.Name] = o
				}
			}
			if deployment == nil {
				t.Fatal("no Deployment")
			}
			pod := deployment.Spec.Template
			if !reflect.DeepEqual(deployment.Spec.Selector.MatchLabels, pod.Labels) {
				t.Errorf("selector %v, labels of the pod %v", deployment.Spec.Selector.MatchLabels, pod.Labels)
			}
			if s := pod.Spec.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot ||
				s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("security context of the pod: %+v", s)
			}
			var monitor *corev1.Container
			for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
				for i, container := range containers {
					if s := container.SecurityContext; s == nil ||
						s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
						s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
						s.Capabilities == nil || !reflect.DeepEqual(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
						t.Errorf("container %s: security context %+v", container.Name, s)
					}
					if container.Resources.Requests.Memory().IsZero() || container.Resources.Limits.Memory().IsZero() {
						t.Errorf("container %s: no memory request or limit", container.Name)
					}
					if container.Name == "lag-monitor" {
						monitor = &containers[i]
					}
				}
			}
			if monitor == nil {
				t.Fatal("no container lag-monitor")
			}
			if monitor.Image != "ghcr.io/lag-monitor/lag-monitor:VERSION" {
				t.Errorf("image %s", monitor.Image)
			}
			if always := corev1.ContainerRestartPolicyAlways; c.sidecar != (monitor.RestartPolicy != nil && *monitor.RestartPolicy == always) {
				t.Errorf("restart policy of the container: %v", monitor.RestartPolicy)
			}
			if monitor.LivenessProbe.HTTPGet.Path != "/-/healthy" {
				t.Errorf("liveness probe %+v", monitor.LivenessProbe.HTTPGet)
			}
			if c.sidecar {
				if monitor.ReadinessProbe != nil || monitor.StartupProbe.HTTPGet.Path != "/-/healthy" {
					t.Error("a sidecar that waits for its queues keeps the application from serving")
				}
			} else if monitor.ReadinessProbe.HTTPGet.Path != "/-/ready" {
				t.Errorf("readiness probe %+v", monitor.ReadinessProbe.HTTPGet)
			}
			for _, p := range []*corev1.Probe{monitor.LivenessProbe, monitor.ReadinessProbe, monitor.StartupProbe} {
				if p != nil && p.HTTPGet.Port.String() != monitor.Ports[0].Name {
					t.Errorf("probe of %s goes to port %s, which the container does not have", p.HTTPGet.Path, p.HTTPGet.Port.String())
				}
			}
			// The file that the flag names is in the mounted ConfigMap.
			mount, volume := monitor.VolumeMounts[0], pod.Spec.Volumes[0]
			if mount.Name != volume.Name || mount.SubPath != "" {
				t.Errorf("mount %+v of volume %s", mount, volume.Name)
			}
			var file string
			for _, arg := range monitor.Args {
				if f, ok := strings.CutPrefix(arg, "--config.file="+mount.MountPath+"/"); ok {
					file = f
				}
			}
			config := configMaps[volume.ConfigMap.Name]
			if config == nil || config.Data[file] == "" {
				t.Errorf("ConfigMap %s has no %q", volume.ConfigMap.Name, file)
			}
		})
	}
}

// What scrapes selects what is there.
func TestMonitorsSelect(t *testing.T) {
	var service *corev1.Service
	var serviceMonitor *monitoringv1.ServiceMonitor
	var deployment *appsv1.Deployment
	for _, o := range objects(t, "kubernetes/standalone") {
		switch o := o.(type) {
		case *corev1.Service:
			service = o
		case *monitoringv1.ServiceMonitor:
			serviceMonitor = o
		case *appsv1.Deployment:
			deployment = o
		}
	}
	if !reflect.DeepEqual(service.Spec.Selector, deployment.Spec.Template.Labels) {
		t.Errorf("Service selects %v, the pod has %v", service.Spec.Selector, deployment.Spec.Template.Labels)
	}
	if !reflect.DeepEqual(serviceMonitor.Spec.Selector.MatchLabels, service.Labels) {
		t.Errorf("ServiceMonitor selects %v, the Service has %v", serviceMonitor.Spec.Selector.MatchLabels, service.Labels)
	}
	if got, want := serviceMonitor.Spec.Endpoints[0].Port, service.Spec.Ports[0].Name; got != want {
		t.Errorf("ServiceMonitor scrapes port %q, the Service has %q", got, want)
	}
	var podMonitor *monitoringv1.PodMonitor
	for _, o := range objects(t, "kubernetes/sidecar") {
		switch o := o.(type) {
		case *monitoringv1.PodMonitor:
			podMonitor = o
		case *appsv1.Deployment:
			deployment = o
		}
	}
	if !reflect.DeepEqual(podMonitor.Spec.Selector.MatchLabels, deployment.Spec.Template.Labels) {
		t.Errorf("PodMonitor selects %v, the pod has %v", podMonitor.Spec.Selector.MatchLabels, deployment.Spec.Template.Labels)
	}
	if got, want := podMonitor.Spec.PodMetricsEndpoints[0].Port, deployment.Spec.Template.Spec.InitContainers[0].Ports[0].Name; got == nil || *got != want {
		t.Errorf("PodMonitor scrapes port %v, the sidecar has %q", got, want)
	}
}

// prometheusrule.yaml, which `lag-monitor rules --format=operator` makes, has the rules of the rules file. A test
// beside that command compares it to the letter.
func TestPrometheusRule(t *testing.T) {
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(prometheusRule)
	if err != nil {
		t.Fatal(err)
	}
	var plain monitoringv1.PrometheusRuleSpec
	if err := yaml.UnmarshalStrict(rules, &plain); err != nil {
		t.Fatal(err)
	}
	if object := decode(t, got).(*monitoringv1.PrometheusRule); !reflect.DeepEqual(object.Spec, plain) {
		t.Error("the PrometheusRule has other rules than the rules file")
	}
}
