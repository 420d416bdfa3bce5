"""Pascal VOC: `xml`, `format`, `sink`."""
