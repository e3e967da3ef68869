package finding

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
)

// Codes returns the registry of all codes, in order.
func Codes() []Code {
	return decodingCodes()
}

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
	}
}
