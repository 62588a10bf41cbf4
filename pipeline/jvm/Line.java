package trecpipeline;

import io.anserini.collection.SourceDocument;

/** The document of one line. */
record Line(Text docid, Text text) implements SourceDocument {
  @Override
  public String id() {
    return docid.string();
  }

  @Override
  public String contents() {
    return text.string();
  }

  @Override
  public boolean indexable() {
    return true;
  }

  /** A record of JSON as Anserini keeps it. */
  @Override
  public String raw() {
    return "{\n  \"id\" : \"" + docid.quoted() + "\",\n  \"contents\" : \"" + text.quoted() + "\"\n}";
  }
}
