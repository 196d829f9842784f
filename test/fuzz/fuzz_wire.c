/*
 * fuzz_wire.c - damaged frames, options and histories must be refused or taken, and never more.
 *
 *	fuzz_wire COUNT [SEED [NUMBER]]
 *
 * A turn makes the payload of a request whose JSON texts and labels are damaged, sometimes
 * damages the payload too, and reads all of it as the engine does: header, fields, request,
 * options, history, labels. A history that is taken is written again, and must then be taken
 * once more. Requests with labels are prepared whole, up to the picture. Rows to train on are made
 * of texts, read as numbers, and prepared to be evaluated.
 */
#include "fuzz.h"
#include "model_text.h"
#include "request_labels.h"
#include "request_training.h"

#define PAYLOAD_SIZE 32768
#define MODEL "test/golden/model-a"

static const char options_text[] =
	"{\"max_tokens\": 64, \"temperature\": 0.5, \"top_k\": 40, \"top_p\": 0.9, \"seed\": 7, "
	"\"num_beams\": 1, \"length_penalty\": 1.0, \"early_stopping\": false, \"logprobs\": false, "
	"\"stop\": [\"a\", \"b\"], \"input\": \"caf\xC3\xA9\", \"threshold\": 0.25, \"no_repeat_ngram_size\": 0}";

static const char digest_text[] =
	"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static const char history_text[] =
	"[{\"role\": \"user\", \"content\": \"What is this?\"}, "
	"{\"role\": \"assistant\", \"content\": \"A red bus \xF0\x9F\x9A\x8C.\"}, "
	"{\"role\": \"user\", \"content\": \"\"}, {\"role\": \"assistant\", \"content\": \"\\n\"}]";

static const char *const label_texts[] = {"cat", "dog", "a red bus", "caf\xC3\xA9", "b\nc", "dog "};

/* Where damaged requests are prepared: a tokenizer and prompts, without a model. */
static ModelConfig config;
static ModelContext context;

static bool
open_context(Arena *arena)
{
	Status		status;
	Tokenizer  *tokenizer;

	if (!model_config_read(MODEL, arena, &config, &status))
		return false;
	tokenizer = model_text_tokenizer(MODEL, &config, arena, &status);
	return tokenizer != NULL && model_context_create(&context, &config, tokenizer, arena, &status);
}

/* Some of the labels as a list, in a buffer of PAYLOAD_SIZE bytes. */
static FuzzText
draw_labels(uint8_t *buffer, uint64_t *state)
{
	uint8_t    *end = buffer;

	for (size_t i = 0; i < sizeof(label_texts) / sizeof(label_texts[0]); i++)
		if (fuzz_draw(state, 4) > 0)
			end = wire_list_add(end, label_texts[i], (uint32_t) strlen(label_texts[i]));
	return fuzz_text(buffer, (size_t) (end - buffer));
}

/* Tokens and targets, most of them of the vocabulary, and maybe a picture. */
static void
write_row(WireWriter *writer, uint64_t *state)
{
	static const uint8_t pixels[56 * 56 * 3];
	int32_t		tokens[32];
	int32_t		targets[32];
	size_t		count = fuzz_draw(state, 33);
	bool		picture = fuzz_draw(state, 2) == 0;

	for (size_t i = 0; i < count; i++)
	{
		tokens[i] = (int32_t) fuzz_draw(state, 601);
		targets[i] = fuzz_draw(state, 2) == 0 ? tokens[i] : LABEL_NONE;
	}
	if (picture && count > 0)
		tokens[fuzz_draw(state, count)] = 601;
	if (count > 0 && fuzz_draw(state, 4) == 0)
		tokens[fuzz_draw(state, count)] = (int32_t) fuzz_draw(state, UINT32_MAX);
	if (count > 0 && fuzz_draw(state, 4) == 0)
		targets[fuzz_draw(state, count)] = (int32_t) fuzz_draw(state, UINT32_MAX);
	wire_write_bytes(writer, WIRE_FIELD_TOKENS, tokens, count * sizeof(int32_t));
	wire_write_bytes(writer, WIRE_FIELD_TARGETS, targets, count * sizeof(int32_t));
	if (picture)
		wire_write_bytes(writer, WIRE_FIELD_PIXELS, pixels,
						 sizeof(pixels) - (fuzz_draw(state, 8) == 0 ? 1 : 0));
}

/* Texts of a row. */
static void
write_texts(WireWriter *writer, const FuzzText *conversation, uint64_t *state)
{
	if (fuzz_draw(state, 2) == 0)
		wire_write_bytes(writer, WIRE_FIELD_INPUT, "caf\xC3\xA9", 5);
	if (fuzz_draw(state, 4) > 0)
		wire_write_bytes(writer, WIRE_FIELD_RESPONSE, "Two <image> dogs.</s>", 21);
	if (fuzz_draw(state, 2) == 0)
		wire_write_bytes(writer, WIRE_FIELD_CONVERSATION, conversation->bytes,
						 conversation->length);
	if (fuzz_draw(state, 4) == 0)
		wire_write_bytes(writer, WIRE_FIELD_IMAGE_RULES, "original", fuzz_draw(state, 9));
	if (fuzz_draw(state, 2) == 0)
		wire_write_bytes(writer, WIRE_FIELD_CHECKPOINT, "mmgpt-training-2", fuzz_draw(state, 17));
	wire_write_u32(writer, WIRE_FIELD_BUDGET_MS, (uint32_t) fuzz_draw(state, UINT32_MAX));
	if (fuzz_draw(state, 2) == 0)
		wire_write_u32(writer, WIRE_FIELD_TRAINING_SHARE, (uint32_t) fuzz_draw(state, 101));
}

/* Write the payload of a request into a buffer of PAYLOAD_SIZE bytes; returns its length. */
static size_t
write_payload(uint8_t *buffer, const FuzzText *options, const FuzzText *history,
			  const FuzzText *labels, uint64_t *state)
{
	WireWriter	writer;

	wire_writer_begin(&writer, buffer, PAYLOAD_SIZE);
	wire_write_u32(&writer, WIRE_FIELD_KIND, (uint32_t) fuzz_draw(state, WIRE_KIND_LAST + 2));
	wire_write_u32(&writer, WIRE_FIELD_FLAGS, (uint32_t) fuzz_draw(state, 2));
	wire_write_u64(&writer, WIRE_FIELD_MAX_PIXELS, fuzz_draw(state, UINT64_MAX));
	wire_write_bytes(&writer, WIRE_FIELD_PROMPT, "How many?", 9);
	/* without them a request comes further */
	if (fuzz_draw(state, 2) == 0)
	{
		wire_write_bytes(&writer, WIRE_FIELD_OPTIONS, options->bytes, options->length);
		wire_write_bytes(&writer, WIRE_FIELD_HISTORY, history->bytes, history->length);
	}
	wire_write_bytes(&writer, WIRE_FIELD_LABELS, labels->bytes, labels->length);
	wire_write_f64(&writer, WIRE_FIELD_TEMPERATURE, 0.5);
	if (fuzz_draw(state, 2) == 0)
	{
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER, digest_text, strlen(digest_text));
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_MODEL, digest_text, strlen(digest_text));
		wire_write_bytes(&writer, WIRE_FIELD_ADAPTER_NAME, "caf\xC3\xA9", 5);
	}
	write_texts(&writer, history, state);
	if (fuzz_draw(state, 2) == 0)
		write_row(&writer, state);
	if (fuzz_draw(state, 2) == 0)
		wire_write_bytes(&writer, WIRE_FIELD_IMAGE, "not an image", 12);
	return writer.used;
}

/* Damage numbers of a payload: tags and lengths are little-endian words. */
static void
damage_words(FuzzText *payload, uint64_t *state)
{
	static const uint32_t words[] = {0, 1, 8, WIRE_FIELD_LAST, WIRE_FIELD_LAST + 1, 0x7FFFFFFF,
									 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF};
	uint32_t	word = words[fuzz_draw(state, sizeof(words) / sizeof(words[0]))];

	if (payload->length >= sizeof(word))
		memcpy(payload->bytes + fuzz_draw(state, payload->length - sizeof(word) + 1), &word,
			   sizeof(word));
}

/* Read 16 bytes as the header of a frame; one that is taken is written as it was. */
static bool
check_header(uint64_t *state)
{
	uint8_t		bytes[WIRE_HEADER_SIZE];
	uint8_t		again[WIRE_HEADER_SIZE];
	WireHeader	header;

	for (int i = 0; i < WIRE_HEADER_SIZE; i++)
		bytes[i] = (uint8_t) (fuzz_draw(state, 2) == 0 ? 0 : fuzz_draw(state, 256));
	if (!wire_header_read(bytes, &header))
		return true;
	wire_header_write(&header, again);
	if (header.length > WIRE_MAX_PAYLOAD || memcmp(bytes, again, sizeof(bytes)) != 0)
		return fuzz_broken("the header of a frame");
	return true;
}

/* Check that all fields lie in the payload, and that failures travel. */
static bool
check_fields(const FuzzText *payload)
{
	const uint8_t *begin = (const uint8_t *) payload->bytes;
	WireFields	fields;
	Status		status;

	status_clear(&status);
	if (!wire_fields_read(begin, payload->length, &fields, &status))
		return status.code == STATUS_PROTOCOL && fuzz_says_why(&status);
	for (int tag = 0; tag <= WIRE_FIELD_LAST; tag++)
		if (fields.bytes[tag] != NULL &&
			(fields.bytes[tag] < begin || fields.bytes[tag] > begin + payload->length ||
			 fields.length[tag] > (size_t) (begin + payload->length - fields.bytes[tag])))
			return fuzz_broken("a field outside of its payload");
	wire_get_status(&fields, &status);
	return true;
}

/* Check what options promise. */
static bool
check_options(const char *json, size_t length, Arena *arena)
{
	RequestOptions options;
	Status		status;

	status_clear(&status);
	request_options_defaults(&options);
	if (!request_options_read(json, length, false, arena, &options, &status))
		return fuzz_says_why(&status);
	if (options.max_tokens < 1 || options.max_tokens > 1000000 || !(options.temperature >= 0) ||
		!(options.temperature <= 100) || options.top_k < 0 || !(options.top_p > 0) ||
		!(options.top_p <= 1) || !(options.threshold >= 0) || !(options.threshold <= 1) ||
		options.stop_count < 0 || options.stop_count > OPTIONS_MAX_STOPS ||
		options.eos_token_id != -1 || options.num_beams < 1)
		return fuzz_broken("an option out of its range");
	for (int i = 0; i < options.stop_count; i++)
		if (options.stops[i] == NULL || options.stops[i][0] == '\0')
			return fuzz_broken("an empty stop string");
	return true;
}

/* Check that a history is refused with a reason, or can be written and read again. */
static bool
check_history(const char *json, size_t length, Arena *arena)
{
	TextPart	prompt = {"And now?", 8};
	TextPart	answer = {"Yes.", 4};
	TextPart	input = {NULL, 0};
	Dialogue	dialogue;
	Dialogue	again;
	Status		status;
	char	   *written;
	size_t		size = 0;

	status_clear(&status);
	if (!dialogue_read(json, length, prompt, input, true, arena, &dialogue, &status))
		return fuzz_says_why(&status);
	written = dialogue_write(&dialogue, answer, NULL, arena, &size, &status);
	if (written == NULL || dialogue.count < 1)
		return fuzz_broken("a history that cannot be written");
	if (!dialogue_read(written, size, prompt, input, true, arena, &again, &status) ||
		again.count != dialogue.count + 1)
		return fuzz_broken("a history that is not taken again");
	return true;
}

/* Check that labels are refused with a reason, or are none empty, none twice and all in a list. */
static bool
check_labels(Request *request)
{
	const char *begin = (const char *) request->fields.bytes[WIRE_FIELD_LABELS];
	size_t		length = request->fields.length[WIRE_FIELD_LABELS];
	LabelList	list;

	request->context = &context;
	if (!labels_read(request, &list))
		return fuzz_says_why(&request->status);
	for (int i = 0; i < list.count; i++)
	{
		const TextPart *label = &list.labels[i];

		if (label->text < begin || label->length == 0 ||
			label->length > (size_t) (begin + length - label->text))
			return fuzz_broken("a label outside of its list");
		for (int j = 0; j < i; j++)
			if (list.labels[j].length == label->length &&
				memcmp(list.labels[j].text, label->text, label->length) == 0)
				return fuzz_broken("a label that comes twice");
	}
	return list.count > 0 || fuzz_broken("no labels");
}

/* Check that a request with labels is refused with a reason: it has no picture in any case. */
static bool
check_prepared(Request *request)
{
	if (request->kind != WIRE_KIND_CLASSIFY && request->kind != WIRE_KIND_CLASSIFY_MULTI)
		return true;
	if (request_prepare(request, &context) && wire_has(&request->fields, WIRE_FIELD_IMAGE))
		return fuzz_broken("a request whose picture is none");
	return status_good(&request->status) || fuzz_says_why(&request->status);
}

/* Check that a row is refused with a reason, or its targets are its tokens. */
static bool
check_encoded(Request *request)
{
	WireFields	answer;
	Status		status;

	request_encode_row(request, &context);
	if (!request->answered)
		return fuzz_says_why(&request->status);
	request->answered = false;
	if (request->answer.overflow ||
		!wire_fields_read(request->answer.bytes, request->answer.used, &answer, &status) ||
		answer.length[WIRE_FIELD_TOKENS] != answer.length[WIRE_FIELD_TARGETS])
		return fuzz_broken("the answer with a row");
	for (uint32_t at = 0; at < answer.length[WIRE_FIELD_TOKENS]; at += 4)
	{
		int32_t		token;
		int32_t		target;

		memcpy(&token, answer.bytes[WIRE_FIELD_TOKENS] + at, 4);
		memcpy(&target, answer.bytes[WIRE_FIELD_TARGETS] + at, 4);
		if (token < 0 || token >= config.decoder.vocabulary || (target >= 0 && target != token))
			return fuzz_broken("a token or target of a row");
	}
	return true;
}

/* Check that rows of numbers and checkpoints are refused with a reason, or are what they say. */
static bool
check_training(Request *request)
{
	TrainingRow row = {0};
	Picture		picture;

	request->context = &context;
	if (request_read_row(request, &config, &row, &picture))
	{
		if ((size_t) row.count * 4 != request->fields.length[WIRE_FIELD_TOKENS] ||
			row.picture_count > 1)
			return fuzz_broken("a row that was read");
	}
	else if (request->status.code != STATUS_PROTOCOL || !fuzz_says_why(&request->status))
		return false;
	status_clear(&request->status);
	request->kind = WIRE_KIND_EVALUATE;
	if (request_prepare(request, &context) &&
		(request->evaluation == NULL || request->ids.count < 1 ||
		 request->ids.count >= row.count))
		return fuzz_broken("a row to be evaluated");
	if (!status_good(&request->status) && !fuzz_says_why(&request->status))
		return false;
	status_clear(&request->status);
	request->kind = WIRE_KIND_TRAIN_START;
	if (request_prepare_training(request, &context))
		return request->train->checkpoint == NULL || fuzz_broken("a checkpoint that is none");
	return fuzz_says_why(&request->status);
}

/* Both, and the status as it was. */
static bool
check_rows(Request *request)
{
	bool		good = check_encoded(request);

	status_clear(&request->status);
	good = good && check_training(request);
	status_clear(&request->status);
	return good;
}

/*
 * Check that an adapter is wanted with whole digests only, that a model that is not the one is told
 * from it, and files as they answer NEED: here whatever the payload holds.
 */
static bool
check_adapter(Request *request, const FuzzText *payload)
{
	static atomic_size_t counter;
	uint8_t    *copy = malloc(payload->length > 0 ? payload->length : 1);
	bool		whole = request->fields.length[WIRE_FIELD_ADAPTER] == 2 * DIGEST_SIZE &&
		request->fields.length[WIRE_FIELD_ADAPTER_MODEL] == 2 * DIGEST_SIZE;
	bool		good = true;

	memcpy(copy, payload->bytes, payload->length);
	atomic_store(&counter, payload->length);
	if (request->wants_adapter && !whole)
		good = fuzz_broken("an adapter without digests");
	else if (request->wants_adapter && !request_fits_model(request, digest_text))
		good = request->status.code == STATUS_OTHER_MODEL && fuzz_says_why(&request->status);
	status_clear(&request->status);
	if (request_take_files(request, copy, payload->length, &counter))
		good = good && !request_verify_files(request);
	good = good && (status_good(&request->status) || fuzz_says_why(&request->status));
	status_clear(&request->status);
	request_drop_files(request);
	return good && (atomic_load(&counter) == 0 || fuzz_broken("the count of files"));
}

/* Check a request as the engine makes it of the payload, of which it takes over a copy. */
static bool
check_request(const FuzzText *payload, Arena *arena)
{
	uint8_t    *copy = malloc(payload->length > 0 ? payload->length : 1);
	Request    *request;
	bool		good;

	memcpy(copy, payload->bytes, payload->length);
	request = request_create(1, copy, payload->length, NULL);
	if (request == NULL)
		return fuzz_broken("a request that was not made");
	if (status_good(&request->status))
		good = check_adapter(request, payload) &&
			check_options((const char *) request->fields.bytes[WIRE_FIELD_OPTIONS],
							 request->fields.length[WIRE_FIELD_OPTIONS], arena) &&
			check_history((const char *) request->fields.bytes[WIRE_FIELD_HISTORY],
						  request->fields.length[WIRE_FIELD_HISTORY], arena) &&
			check_prepared(request) && check_labels(request) && check_rows(request);
	else
		good = request->status.code == STATUS_PROTOCOL && fuzz_says_why(&request->status);
	request_free(request);
	return good;
}

/* Damage the texts of a request, or its payload, and read it. */
static bool
run_turn(uint64_t *state)
{
	FuzzText	options = fuzz_text(options_text, strlen(options_text));
	FuzzText	history = fuzz_text(history_text, strlen(history_text));
	FuzzText	labels;
	FuzzText	payload;
	uint8_t		buffer[PAYLOAD_SIZE];
	Arena	   *arena = arena_create();
	bool		good;

	fuzz_damage(&options, state);
	fuzz_damage(&history, state);
	labels = draw_labels(buffer, state);
	if (fuzz_draw(state, 2) == 0)
		fuzz_damage(&labels, state);
	if (fuzz_draw(state, 4) == 0)
		damage_words(&labels, state);
	payload = fuzz_text(buffer, write_payload(buffer, &options, &history, &labels, state));
	if (fuzz_draw(state, 4) == 0)
		fuzz_damage(&payload, state);
	if (fuzz_draw(state, 4) == 0)
		damage_words(&payload, state);
	fuzz_tighten(&payload);
	fuzz_tighten(&options);
	fuzz_tighten(&history);
	good = check_header(state) && check_fields(&payload) && check_request(&payload, arena) &&
		check_options(options.bytes, options.length, arena) &&
		check_history(history.bytes, history.length, arena);
	arena_free(arena);
	free(options.bytes);
	free(history.bytes);
	free(labels.bytes);
	free(payload.bytes);
	return good;
}

int
main(int argc, char **argv)
{
	Arena	   *arena = arena_create();
	int			result;

	if (!open_context(arena))
	{
		fprintf(stderr, "%s does not open\n", MODEL);
		return 2;
	}
	result = fuzz_run(argc, argv, run_turn);
	tokenizer_close((Tokenizer *) context.tokenizer);
	arena_free(arena);
	return result;
}
