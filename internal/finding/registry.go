package finding

import "sync"

// Codes of reading files and decoding objects.
const (
	Unreadable      = "LAT0001"
	Syntax          = "LAT0002"
	TooLarge        = "LAT0003"
	Expansion       = "LAT0004"
	Encoding        = "LAT0005"
	NoKind          = "LAT0006"
	BadName         = "LAT0007"
	DuplicateKey    = "LAT0008"
	UnknownKind     = "LAT0009"
	RetiredKind     = "LAT0010"
	UnservedVersion = "LAT0011"
	UnknownField    = "LAT0012"
	Misplaced       = "LAT0013"
	WrongType       = "LAT0014"
	UnknownEnum     = "LAT0015"
	OneOf           = "LAT0016"
	DuplicateObject = "LAT0017"
	Fragment        = "LAT0018"
	Embedded        = "LAT0019"
	NotApplied      = "LAT0020"
	FieldNotApplied = "LAT0021"
	DeprecatedField = "LAT0022"
	IgnoredField    = "LAT0023"
	OlderVersion    = "LAT0024"
)

// Codes of an object's own schema.
const (
	RequiredField    = "LAT0030"
	OutOfRange       = "LAT0031"
	CRDRule          = "LAT0032"
	InvalidReference = "LAT0033"
	InvalidLabel     = "LAT0034"
	InvalidAddress   = "LAT0035"
	InvalidHeader    = "LAT0036"
)

// Codes of traffic.
const (
	DestinationMissing = "LAT0101"
	GatewayMissing     = "LAT0102"
	PortRequired       = "LAT0103"
	SubsetMissing      = "LAT0104"
	SubsetEmpty        = "LAT0105"
	UnreachableRule    = "LAT0106"
	ConflictingHosts   = "LAT0107"
	GatewayUnselected  = "LAT0108"
	PortName           = "LAT0109"
	InvalidHost        = "LAT0110"
	InvalidWeight      = "LAT0111"
	WeightSum          = "LAT0112"
	InvalidRegex       = "LAT0113"
	LargeRegex         = "LAT0114"
	IncompleteRoute    = "LAT0115"
	InvalidMatch       = "LAT0116"
	IneffectiveMatch   = "LAT0117"
	InvalidRetry       = "LAT0118"
	RetryTimeout       = "LAT0119"
	InvalidFault       = "LAT0120"
	OpenCORS           = "LAT0121"
	InvalidRewrite     = "LAT0122"
	DuplicateSubset    = "LAT0123"
	InvalidPolicyValue = "LAT0124"
	InvalidTLS         = "LAT0125"
	UnverifiedTLS      = "LAT0126"
	ShortConnections   = "LAT0127"
	InvalidProtocol    = "LAT0128"
	InvalidResolution  = "LAT0129"
	ConsecutiveErrors  = "LAT0130"
	RuleHostMissing    = "LAT0131"
	HostNotInGateway   = "LAT0132"
	ConflictingGateway = "LAT0133"
	ConflictingSidecar = "LAT0134"
	GatewayPort        = "LAT0135"
	CredentialMissing  = "LAT0136"
	DestinationPort    = "LAT0137"
	NoCatchAll         = "LAT0138"
)

// Codes of security.
const (
	InvalidPolicy      = "LAT0201"
	DeniesAll          = "LAT0202"
	IneffectivePolicy  = "LAT0203"
	WildcardInside     = "LAT0204"
	PrincipalScheme    = "LAT0205"
	MethodCase         = "LAT0206"
	PathNeverMatches   = "LAT0207"
	PrincipalUnknown   = "LAT0208"
	NamespaceUnknown   = "LAT0209"
	PolicySelects      = "LAT0210"
	HTTPOnTCP          = "LAT0211"
	OpenPolicy         = "LAT0212"
	ScrapeDenied       = "LAT0213"
	PlaintextPrincipal = "LAT0214"
	TokensUnverified   = "LAT0215"
)

// Codes of telemetry.
const (
	ProviderUnknown       = "LAT0301"
	OpenCensusAgent       = "LAT0302"
	RetiredTracer         = "LAT0303"
	Sampling              = "LAT0304"
	OneProvider           = "LAT0305"
	EndpointHost          = "LAT0306"
	MonitorPort           = "LAT0307"
	MonitorNamespaces     = "LAT0308"
	ConflictingTelemetry  = "LAT0309"
	ProviderServiceAbsent = "LAT0310"
)

// Codes of workloads.
const (
	SelectorMismatch = "LAT0401"
	MissingVolume    = "LAT0402"
	InvalidProbe     = "LAT0403"
	ServiceSelects   = "LAT0404"
	ReferenceMissing = "LAT0405"
	TargetPort       = "LAT0406"
	AccountMissing   = "LAT0407"
	UnknownNote      = "LAT0408"
	SeveralServices  = "LAT0409"
	FragmentTarget   = "LAT0410"
)

// Codes of OpenTelemetry Collector configuration.
const (
	CollectorSyntax     = "LAT0501"
	CollectorJaeger     = "LAT0502"
	CollectorLogging    = "LAT0503"
	CollectorLoglevel   = "LAT0504"
	CollectorOpenCensus = "LAT0505"
	CollectorAlias      = "LAT0506"
	CollectorOrder      = "LAT0507"
	CollectorImage      = "LAT0508"
	CollectorUndefined  = "LAT0509"
	CollectorUnused     = "LAT0510"
	CollectorHost       = "LAT0511"
	CollectorMemory     = "LAT0512"
)

// Codes that only a running control plane finds.
const (
	TrustDomainFixed = "LAT0601"
	AppliedHidden    = "LAT0602"
	AddressesFull    = "LAT0603"
)

// Codes returns the registry of all codes, in order. It must not be changed.
func Codes() []Code { return allCodes() }

// allCodes is made once, since every finding is looked up in it.
var allCodes = sync.OnceValue(func() []Code {
	var all []Code
	all = append(all, decodingCodes()...)
	all = append(all, schemaCodes()...)
	all = append(all, trafficCodes()...)
	all = append(all, securityCodes()...)
	all = append(all, telemetryCodes()...)
	all = append(all, workloadCodes()...)
	all = append(all, collectorCodes()...)
	return append(all, controlCodes()...)
})

func controlCodes() []Code {
	return []Code{
		{TrustDomainFixed, Error, "", "trust domain of a running mesh changed", "Certificates are issued in the trust domain the mesh was started with. Restart with a new data directory to change it."},
		{AppliedHidden, Warning, "", "applied object hidden by a file", "An object that was applied is now also defined in a watched file, which holds."},
		{AddressesFull, Error, "", "no addresses left for services", "The prefixes from which Services and ServiceEntry hosts get addresses are used up. Give larger ones."},
	}
}
