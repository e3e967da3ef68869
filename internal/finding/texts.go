package finding

func decodingCodes() []Code {
	return []Code{
		{Unreadable, Error, "", "file cannot be read", "The file or folder exists but could not be read. What was read from it last stays in force."},
		{Syntax, Error, "", "not valid YAML", "The document does not parse. Other documents of the file are not affected, and the last good version of its objects stays in force."},
		{TooLarge, Error, "", "document too large", "Kubernetes stores no object over 1.5 MiB. Split the document, or move data out of the configuration."},
		{Expansion, Error, "", "aliases or nesting expand too far", "YAML aliases can make gigabytes of a few lines. Write the values out."},
		{Encoding, Error, "", "not UTF-8", "Configuration files are UTF-8 text."},
		{NoKind, Error, "", "not a manifest", "Every manifest needs apiVersion, kind and metadata.name."},
		{BadName, Error, "", "missing or invalid name", "Names are lower-case letters, digits, '-' and '.'."},
		{DuplicateKey, Error, "", "key appears twice", "YAML forbids a key twice in one object; which of the two would hold depends on the reader."},
		{UnknownKind, Warning, "", "unknown kind", "Lateen does not know this kind and leaves the object out."},
		{RetiredKind, Error, "", "retired kind", "No current Istio reads this kind; it has no effect."},
		{UnservedVersion, Error, "", "version not served", "The kind exists, but not in this API version."},
		{UnknownField, Error, "IST0106", "unknown field", "The field does not exist. Kubernetes refuses it, or drops it in silence where validation is off."},
		{Misplaced, Error, "IST0106", "field in the wrong place", "The field exists elsewhere in this kind, usually one level deeper. Where it stands it has no effect."},
		{WrongType, Error, "IST0106", "value of the wrong type", "The field wants another type of value."},
		{UnknownEnum, Error, "IST0106", "unknown value", "The field takes one of a few names."},
		{OneOf, Error, "IST0106", "fields exclude each other", "Only one of these fields can be set."},
		{DuplicateObject, Error, "", "object defined twice", "Two documents have the same kind, namespace and name. The first one holds."},
		{Fragment, Error, "", "fragment of a manifest", "The document is a part that belongs inside another object; by itself it has no effect."},
		{Embedded, Error, "", "invalid YAML inside a field", "A text field that holds YAML does not parse or decode."},
		{NotApplied, Warning, "", "kind not applied yet", "The object is decoded and validated, and this version of Lateen does not act on it."},
		{FieldNotApplied, Warning, "", "field not applied yet", "The field is decoded and validated, and this version of Lateen does not act on it. The rest of the object is in force."},
		{DeprecatedField, Info, "IST0002", "deprecated field", "The field still applies; a newer one takes its place."},
		{IgnoredField, Warning, "IST0002", "field without effect", "Istio reads the field and does nothing with it, and so does Lateen."},
		{OlderVersion, Info, "", "older API version", "The version is served and means the same; v1 is current."},
	}
}

func schemaCodes() []Code {
	return []Code{
		{RequiredField, Error, "IST0106", "required field missing", "The object cannot be in force without this field."},
		{OutOfRange, Error, "IST0106", "value out of range", "The value is outside of what the field allows."},
		{CRDRule, Error, "IST0106", "rule of the definition broken", "A validation rule of the kind's CustomResourceDefinition does not hold."},
		{InvalidReference, Error, "IST0106", "invalid name", "The value is not a valid name for what it refers to."},
		{InvalidLabel, Error, "IST0106", "invalid label", "Labels follow Kubernetes' rules for names and values."},
		{InvalidAddress, Error, "IST0106", "invalid address", "The value is not an IP address, CIDR block or endpoint as the field wants it."},
		{InvalidHeader, Error, "IST0106", "invalid header or method", "The value is not an HTTP header name or method."},
	}
}

func trafficCodes() []Code {
	return []Code{
		{DestinationMissing, Error, "IST0101", "destination host does not exist", "A route leads to a host that no Service or ServiceEntry declares; its requests get 503."},
		{GatewayMissing, Error, "IST0101", "gateway does not exist", "A VirtualService is bound to a Gateway that does not exist, so its routes apply nowhere."},
		{PortRequired, Error, "IST0112", "destination port required", "The host has several ports, so the destination must say which."},
		{SubsetMissing, Error, "IST0101", "subset does not exist", "A route leads to a subset that no DestinationRule of the host defines; its requests get 503."},
		{SubsetEmpty, Warning, "IST0173", "subset selects no pods", "No workload has the subset's labels now; requests routed to it get 503 until one does."},
		{UnreachableRule, Warning, "IST0130", "rule is never reached", "An earlier rule takes everything this one could match."},
		{ConflictingHosts, Error, "IST0109", "host in several VirtualServices", "On sidecars only one VirtualService per host applies; the oldest wins."},
		{GatewayUnselected, Warning, "IST0101", "gateway selects no workload", "No workload has the labels of the Gateway's selector, so it opens no port."},
		{PortName, Info, "IST0118", "port name without protocol", "A port's protocol is taken from its name or appProtocol; this one has to be found out from the bytes."},
		{InvalidHost, Error, "IST0106", "invalid host", "Hosts are DNS names, \"*\" or \"*.example.com\"."},
		{InvalidWeight, Error, "IST0106", "invalid weights", "The weights of a route cannot choose a destination."},
		{WeightSum, Warning, "", "weights do not sum to 100", "Weights are shares of their sum, as in Istio. A sum other than 100 is usually a slip."},
		{InvalidRegex, Error, "IST0106", "invalid regular expression", "Regular expressions are RE2, matched in full, of bounded length and size."},
		{LargeRegex, Warning, "", "large regular expression", "The expression compiles to a large program and costs memory in every proxy."},
		{IncompleteRoute, Error, "IST0106", "route without exactly one action", "A route needs one of route, redirect, directResponse and delegate, and some exclude others."},
		{InvalidMatch, Error, "IST0106", "invalid match", "The match can never be evaluated as written."},
		{IneffectiveMatch, Warning, "IST0131", "match never matches", "The condition cannot hold for any request."},
		{InvalidRetry, Error, "IST0106", "invalid retry policy", "The retry policy is not one that Envoy knows."},
		{RetryTimeout, Warning, "", "try outlasts the route's timeout", "The route's timeout covers all tries; a longer perTryTimeout never fires."},
		{InvalidFault, Error, "IST0106", "invalid fault injection", "A fault needs a delay or an abort with a valid status."},
		{OpenCORS, Warning, "", "credentials for every origin", "Any web site could use its visitors' credentials."},
		{InvalidRewrite, Error, "IST0106", "invalid rewrite or redirect", "The rewrite or redirect changes nothing or contradicts itself."},
		{DuplicateSubset, Error, "IST0106", "subset defined twice", "Subset names are unique within a DestinationRule."},
		{InvalidPolicyValue, Error, "IST0106", "invalid traffic policy", "A setting of the traffic policy contradicts itself or is out of range."},
		{InvalidTLS, Error, "IST0106", "invalid TLS settings", "The TLS mode and the certificates given do not fit together."},
		{UnverifiedTLS, Info, "IST0128", "no authority named", "Mode SIMPLE without caCertificates or credentialName trusts the system's authorities."},
		{ShortConnections, Info, "", "connections closed early", "A low maxRequestsPerConnection makes most requests pay for a new connection."},
		{InvalidProtocol, Error, "IST0106", "unknown protocol", "The protocol of a port is not one that proxies speak."},
		{InvalidResolution, Error, "IST0106", "resolution does not fit", "The way hosts are resolved does not fit the hosts or endpoints given."},
		{ConsecutiveErrors, Warning, "IST0106", "consecutiveErrors has no effect", "The field was replaced by consecutiveGatewayErrors and consecutive5xxErrors. As written nothing is ejected."},
		{RuleHostMissing, Warning, "IST0174", "host of DestinationRule does not exist", "No Service or ServiceEntry declares the host, so the rule applies to nothing."},
		{HostNotInGateway, Warning, "IST0132", "host not served by gateway", "None of the Gateway's servers accepts the VirtualService's host."},
		{ConflictingGateway, Error, "IST0145", "gateways conflict", "Two Gateways open the same port of the same workload for the same host with different settings."},
		{ConflictingSidecar, Error, "IST0110", "Sidecars conflict", "More than one Sidecar applies to the same workload; which one wins is arbitrary."},
		{GatewayPort, Warning, "IST0162", "gateway port not on its Service", "The gateway's Service does not lead to the port the Gateway opens."},
		{CredentialMissing, Error, "IST0101", "credential does not exist", "The Secret a Gateway names does not exist in the gateway's namespace; the server cannot open."},
		{DestinationPort, Error, "IST0101", "destination port does not exist", "The host has no such port; requests to it get 503."},
		{NoCatchAll, Info, "", "requests may match no rule", "A VirtualService whose last rule has a match answers 404 to everything else."},
	}
}

func securityCodes() []Code {
	return []Code{
		{InvalidPolicy, Error, "IST0106", "invalid policy", "The policy cannot be evaluated as written. It is refused, and its last good version stays in force."},
		{DeniesAll, Info, "", "policy denies everything", "An ALLOW policy without rules matches no request, so nothing is allowed. This is the usual default-deny."},
		{IneffectivePolicy, Warning, "IST0167", "policy without effect", "The policy changes no decision."},
		{WildcardInside, Warning, "", "'*' taken literally", "Values match exactly, by prefix (\"a*\"), by suffix (\"*a\") or by presence (\"*\"). A '*' elsewhere is an ordinary character."},
		{PrincipalScheme, Warning, "", "principal with scheme", "Principals are compared without spiffe://."},
		{MethodCase, Warning, "", "method in lower case", "HTTP methods are case-sensitive and upper-case."},
		{PathNeverMatches, Warning, "", "path never matches", "Request paths begin with a slash."},
		{PrincipalUnknown, Warning, "", "nobody runs as this identity", "No workload here runs under the service account the policy names, so the rule matches nobody."},
		{NamespaceUnknown, Warning, "", "no workload in this namespace", "The policy names callers from a namespace that has no workload here."},
		{PolicySelects, Warning, "IST0127", "selector matches no workload", "No workload has the labels of the selector, so the object applies to nothing."},
		{HTTPOnTCP, Warning, "", "HTTP rule on a TCP port", "Fields of requests cannot be seen on opaque ports: an ALLOW rule never matches there, a DENY rule keeps only its connection part."},
		{OpenPolicy, Warning, "", "open to callers without identity", "The rule allows requests from anyone, with or without mTLS."},
		{ScrapeDenied, Info, "", "scrapers and probes may be refused", "Under STRICT mTLS, callers outside of the mesh (a Prometheus without sidecar) cannot reach the port, whatever the policy allows."},
		{PlaintextPrincipal, Warning, "", "identity needed where none is sent", "A rule on principals or namespaces needs mTLS; this workload accepts none."},
		{TokensUnverified, Warning, "IST0149", "claims without verification", "A rule or route uses JWT claims and no RequestAuthentication verifies tokens for the workload."},
	}
}

func telemetryCodes() []Code {
	return []Code{
		{ProviderUnknown, Warning, "IST0157", "provider not defined", "Telemetry names a provider that meshConfig.extensionProviders does not define; Istio then reports nothing."},
		{OpenCensusAgent, Warning, "IST0002", "openCensusAgent was removed", "Istio 1.23 and Envoy dropped the OpenCensus tracer. Use an extensionProvider of kind opentelemetry."},
		{RetiredTracer, Warning, "IST0002", "tracer was removed", "Istio and Envoy dropped this tracer. Use an extensionProvider of kind opentelemetry."},
		{Sampling, Warning, "", "sampling out of range", "Sampling is a percentage from 0 to 100."},
		{OneProvider, Warning, "", "several tracing providers", "Only the first provider is used."},
		{EndpointHost, Warning, "", "collector host does not resolve", "The name in an OTLP endpoint resolves in the workload's own namespace first; the Service is in another one or nowhere."},
		{MonitorPort, Warning, "", "monitor without port", "Without a port every declared port is scraped, the application's too."},
		{MonitorNamespaces, Warning, "", "monitor sees its own namespace only", "Without a namespaceSelector only pods of the monitor's own namespace are scraped."},
		{ConflictingTelemetry, Error, "IST0160", "Telemetry objects conflict", "Several Telemetry objects apply to the same workloads at the same level; only the oldest counts."},
		{ProviderServiceAbsent, Warning, "IST0101", "provider's service does not exist", "The provider sends to a host that no Service or ServiceEntry declares."},
	}
}

func workloadCodes() []Code {
	return []Code{
		{SelectorMismatch, Error, "", "selector does not match the template", "Kubernetes refuses a Deployment that would not own its own pods."},
		{MissingVolume, Error, "", "volume does not exist", "A container mounts a volume that the pod does not have."},
		{InvalidProbe, Error, "", "invalid probe", "A probe has exactly one of httpGet, tcpSocket, exec and grpc."},
		{ServiceSelects, Warning, "", "Service selects no workload", "No workload has the labels of the Service's selector, so it has no endpoints."},
		{ReferenceMissing, Warning, "", "referenced object does not exist", "A pod waits for a ConfigMap or Secret that is not defined here."},
		{TargetPort, Warning, "", "target port does not exist", "No container of the selected workloads has a port of this name."},
		{AccountMissing, Warning, "", "service account does not exist", "Kubernetes refuses pods whose service account is not defined."},
		{UnknownNote, Warning, "IST0108", "unknown annotation", "The annotation is not one that Istio defines; it has no effect."},
		{SeveralServices, Warning, "IST0116", "ports conflict between Services", "A workload is behind several Services that give one port different protocols."},
		{FragmentTarget, Error, "", "fragment fits several objects", "The fragment could belong to more than one container; say which by moving it there."},
	}
}

func collectorCodes() []Code {
	return []Code{
		{CollectorSyntax, Error, "", "Collector configuration does not parse", "The OpenTelemetry Collector refuses the file and does not start."},
		{CollectorJaeger, Warning, "", "exporter jaeger was removed", "The Collector dropped the jaeger exporter in 0.85; Jaeger takes OTLP on port 4317. Lateen accepts the old name and sends OTLP."},
		{CollectorLogging, Warning, "", "exporter logging was removed", "The Collector renamed logging to debug in 0.86 and dropped the old name in 0.111. Lateen accepts it."},
		{CollectorLoglevel, Warning, "", "loglevel was removed", "The setting is now verbosity: basic, normal or detailed."},
		{CollectorOpenCensus, Warning, "", "receiver opencensus was removed", "The Collector dropped the opencensus receiver in 0.134. Lateen still has one."},
		{CollectorAlias, Info, "", "deprecated component name", "Current Collectors call this component by a new name and accept the old one."},
		{CollectorOrder, Warning, "", "memory_limiter not first", "memory_limiter can only refuse data when it stands before all other processors."},
		{CollectorImage, Warning, "", "image lacks a component", "The Collector of this image tag does not have a component that the configuration uses; it does not start."},
		{CollectorUndefined, Error, "", "component not defined", "A pipeline uses a component that the configuration does not define; the Collector does not start."},
		{CollectorUnused, Info, "", "component not used", "A component is defined and no pipeline uses it; it does nothing."},
		{CollectorHost, Warning, "", "exporter's host does not exist", "An exporter sends to a host that no Service declares; its data is dropped after retries."},
		{CollectorMemory, Info, "", "no memory limit beside memory_limiter", "memory_limiter bounds what the Collector holds; a container limit above it guards against the rest."},
	}
}
