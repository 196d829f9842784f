/*
 * test_server.c - the server over its socket: many clients, cancelling, being alone, bad
 * frames, a model that can't be loaded, the end of the supervisor.
 */
#include <jansson.h>

#include "serve_client.h"

#define DEMO_MODEL "demo/model"
#define PICTURES 16
#define CLIENTS 32
#define LONG_ANSWER "{\"max_tokens\": 1900, \"temperature\": 100, \"seed\": 5}"

/* The demo's pictures, read once. */
static void *pictures[PICTURES];
static size_t picture_lengths[PICTURES];

static void
read_pictures(void)
{
	for (int i = 0; i < PICTURES && pictures[i] == NULL; i++)
	{
		char		path[64];

		snprintf(path, sizeof(path), "test/golden/demo/pictures/%02d.png", i);
		if (access(path, R_OK) != 0)
			snprintf(path, sizeof(path), "test/golden/demo/pictures/%02d.jpg", i);
		pictures[i] = unit_read_file(path, &picture_lengths[i]);
	}
}

/* A question about a picture; which of the kinds and pictures depends on the number. */
static ClientQuestion
numbered_question(int number)
{
	static const char *const kinds[] = {"dog", "cat", "a red bus", "tree", "key", NULL};
	static const struct
	{
		WireKind	kind;
		const char *prompt;
		const char *const *labels;
	} asked[] = {
		{WIRE_KIND_CAPTION, "detailed", NULL},
		{WIRE_KIND_COUNT, "dogs", NULL},
		{WIRE_KIND_SCORE, "Is there a cat?", NULL},
		{WIRE_KIND_CHAT_TURN, "What is this?", NULL},
		{WIRE_KIND_CHAT, "What is in the picture?", NULL},
		{WIRE_KIND_CLASSIFY, NULL, kinds},
		{WIRE_KIND_CLASSIFY_MULTI, NULL, kinds},
	};
	int			i = number % (int) (sizeof(asked) / sizeof(asked[0]));
	ClientQuestion question = {
		.kind = asked[i].kind, .prompt = asked[i].prompt, .labels = asked[i].labels
	};

	read_pictures();
	question.image = pictures[number % PICTURES];
	question.image_length = picture_lengths[number % PICTURES];
	return question;
}

/* A number of mmgpt_status(), named "group.key". */
static double
status_number(int fd, const char *group, const char *key)
{
	ClientQuestion question = {.kind = WIRE_KIND_STATUS};
	ClientFrame frame = client_ask(fd, 900000, &question);
	json_t	   *root = json_loadb((const char *) frame.fields.bytes[WIRE_FIELD_JSON],
								  frame.fields.length[WIRE_FIELD_JSON], 0, NULL);
	double		value = json_number_value(json_object_get(json_object_get(root, group), key));

	UNIT_CHECK(root != NULL);
	json_decref(root);
	free(frame.payload);
	return value;
}

/* Wait until a number of the status has a value. */
static bool
status_becomes(int fd, const char *group, const char *key, double value)
{
	struct timespec pause = {0, 5000000};

	for (int i = 0; i < 12000; i++)
	{
		if (status_number(fd, group, key) == value)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

UNIT_TEST(what_needs_no_model_is_answered)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	int			fd = client_open(&engine);
	ClientQuestion version = {.kind = WIRE_KIND_VERSION};
	ClientQuestion tokens = {.kind = WIRE_KIND_TOKEN_COUNT, .prompt = "How many dogs?"};
	ClientQuestion info = numbered_question(0);
	ClientFrame frame = client_ask(fd, 1, &version);

	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	UNIT_CHECK(wire_has(&frame.fields, WIRE_FIELD_TEXT));
	free(frame.payload);
	frame = client_ask(fd, 2, &tokens);
	UNIT_CHECK(wire_get_i64(&frame.fields, WIRE_FIELD_INTEGER, 0) > 2);
	free(frame.payload);
	info.kind = WIRE_KIND_IMAGE_INFO;
	frame = client_ask(fd, 3, &info);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	free(frame.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Compare the ends of two requests byte by byte. */
static void
check_same(int number, const ClientFrame *one, const ClientFrame *other)
{
	if (one->header.type != WIRE_ANSWER || one->header.length != other->header.length ||
		memcmp(one->payload, other->payload, one->header.length) != 0)
		UNIT_FAIL("question %d: the answer in company differs from the one alone", number);
}

/* Steps of the scheduler so far, and rows in them. */
static void
read_steps(int fd, double *steps, double *rows)
{
	*steps = status_number(fd, "scheduler", "steps");
	*rows = *steps * status_number(fd, "scheduler", "rows_per_step");
}

/*
 * A story that has to be alone keeps all others waiting until they are all there, so that how
 * they are batched does not depend on who is faster. Its own steps have one row each.
 */
UNIT_TEST(many_clients_get_the_answers_they_get_alone)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	ClientQuestion story = {.kind = WIRE_KIND_CHAT, .prompt = "Tell me a story.",
							.options = LONG_ANSWER, .flags = WIRE_FLAG_ALONE};
	ClientFrame alone[CLIENTS];
	int			fds[CLIENTS];
	int			holder = client_open(&engine);
	double		alone_steps;
	double		alone_rows;
	double		steps;
	double		rows;

	for (int i = 0; i < CLIENTS; i++)
	{
		ClientQuestion question = numbered_question(i);

		fds[i] = client_open(&engine);
		alone[i] = client_ask(fds[i], 1, &question);
	}
	read_steps(holder, &alone_steps, &alone_rows);
	UNIT_CHECK(client_send_question(holder, 1, &story));
	UNIT_CHECK(status_becomes(holder, "requests", "running", 1));
	for (int i = 0; i < CLIENTS; i++)
	{
		ClientQuestion question = numbered_question(i);

		UNIT_CHECK(client_send_question(fds[i], 2, &question));
	}
	UNIT_CHECK(status_becomes(holder, "requests", "waiting", CLIENTS));
	UNIT_CHECK(client_send_frame(holder, WIRE_CANCEL, 1, NULL, 0));
	for (int i = 0; i < CLIENTS; i++)
	{
		bool		started;
		ClientFrame frame = client_read_end(fds[i], 2, &started);

		UNIT_CHECK(started);
		check_same(i, &alone[i], &frame);
		free(frame.payload);
		free(alone[i].payload);
	}
	read_steps(holder, &steps, &rows);
	/*
	 * Rows beyond the first of a step are steps that were saved; alone, only branches share steps.
	 * How many depends on how fast pictures are decoded beside the model.
	 */
	UNIT_CHECK(rows - steps > 2 * (alone_rows - alone_steps));
	UNIT_CHECK(status_number(holder, "requests", "failed") == 0);
	for (int i = 0; i < CLIENTS; i++)
		close(fds[i]);
	close(holder);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Cancel a question that takes long; the connection goes on. */
static void
check_cancelling(const ClientQuestion *question)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	int			fd = client_open(&engine);
	int			other = client_open(&engine);
	ClientQuestion next = numbered_question(0);
	double		before;
	ClientFrame frame;
	bool		started;

	UNIT_CHECK(client_send_question(fd, 7, question));
	UNIT_CHECK(status_becomes(other, "requests", "running", 1));
	before = status_number(other, "requests", "cancelled");
	UNIT_CHECK(client_send_frame(fd, WIRE_CANCEL, 7, NULL, 0));
	UNIT_CHECK(status_becomes(other, "requests", "cancelled", before + 1));
	UNIT_CHECK(status_becomes(other, "requests", "running", 0));
	UNIT_CHECK(client_send_question(fd, 8, &next));
	frame = client_read_end(fd, 8, &started);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	free(frame.payload);
	close(fd);
	close(other);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(cancelling_ends_a_request)
{
	check_cancelling(&(ClientQuestion) {
		.kind = WIRE_KIND_CHAT, .prompt = "Tell me a story.", .options = LONG_ANSWER});
}

UNIT_TEST(cancelling_ends_a_classification)
{
	enum {MANY = 5000};
	static char	texts[MANY][8];
	static const char *many[MANY + 1];

	for (int i = 0; i < MANY; i++)
	{
		snprintf(texts[i], sizeof(texts[i]), "%d", i);
		many[i] = texts[i];
	}
	read_pictures();
	check_cancelling(&(ClientQuestion) {.kind = WIRE_KIND_CLASSIFY, .labels = many,
					 .image = pictures[0], .image_length = picture_lengths[0]});
	check_cancelling(&(ClientQuestion) {.kind = WIRE_KIND_CLASSIFY_MULTI, .labels = many,
					 .image = pictures[0], .image_length = picture_lengths[0]});
}

UNIT_TEST(closing_a_connection_cancels_its_requests)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	int			watcher = client_open(&engine);
	ClientQuestion question = {
		.kind = WIRE_KIND_CHAT, .prompt = "Tell me a story.", .options = LONG_ANSWER};

	for (int i = 0; i < 4; i++)
	{
		int			fd = client_open(&engine);

		for (uint64_t id = 1; id <= 20; id++)
			UNIT_CHECK(client_send_question(fd, id, &question));
		close(fd);
	}
	UNIT_CHECK(status_becomes(watcher, "requests", "cancelled", 80));
	UNIT_CHECK(status_becomes(watcher, "requests", "running", 0));
	UNIT_CHECK(status_becomes(watcher, "requests", "waiting", 0));
	close(watcher);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(a_request_that_must_be_alone_runs_alone)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	int			company = client_open(&engine);
	int			fd = client_open(&engine);
	ClientQuestion story = {
		.kind = WIRE_KIND_CHAT, .prompt = "Tell me a story.", .options = LONG_ANSWER};
	ClientQuestion question = numbered_question(0);
	ClientFrame frame;
	bool		started;

	UNIT_CHECK(client_send_question(company, 1, &story));
	UNIT_CHECK(status_becomes(company, "requests", "running", 1));
	question.flags = WIRE_FLAG_ALONE;
	UNIT_CHECK(client_send_question(fd, 1, &question));
	UNIT_CHECK(status_becomes(company, "requests", "waiting", 1));
	UNIT_EQUAL_INT(status_number(company, "requests", "running"), 1);
	UNIT_CHECK(client_send_frame(company, WIRE_CANCEL, 1, NULL, 0));
	frame = client_read_end(fd, 1, &started);
	UNIT_CHECK(started);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	free(frame.payload);
	close(company);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Send bytes that are no conversation on a connection of their own; the engine must hang up. */
static void
check_hangs_up(const ServedEngine *engine, uint32_t length, uint32_t type)
{
	uint32_t	header[4] = {length, type, 1, 0};
	int			fd = client_open(engine);
	ClientFrame frame;

	UNIT_CHECK(client_send_bytes(fd, header, sizeof(header)));
	frame = client_read_frame(fd);
	UNIT_EQUAL_INT(frame.header.type, 0);
	free(frame.payload);
	close(fd);
}

UNIT_TEST(bad_frames_harm_nobody)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	int			fd = client_open(&engine);
	ClientQuestion question = numbered_question(3);
	ClientFrame frame;
	int			half;

	check_hangs_up(&engine, 0xffffffffu, WIRE_REQUEST);
	check_hangs_up(&engine, 0, 4711);
	check_hangs_up(&engine, 0, WIRE_HELLO);
	/* a client that goes in the middle of a frame */
	half = client_open(&engine);
	UNIT_CHECK(client_send_bytes(half, (uint32_t[5]) {1000000, WIRE_REQUEST, 1, 0, 99}, 20));
	close(half);
	/* fields that are cut off, and a request without any */
	UNIT_CHECK(client_send_frame(fd, WIRE_REQUEST, 1, "abcde", 5));
	frame = client_read_frame(fd);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ERROR);
	UNIT_EQUAL_INT(wire_get_u32(&frame.fields, WIRE_FIELD_CODE, 0), STATUS_PROTOCOL);
	free(frame.payload);
	UNIT_CHECK(client_send_frame(fd, WIRE_REQUEST, 2, NULL, 0));
	frame = client_read_frame(fd);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ERROR);
	free(frame.payload);
	/* cancelling what does not exist */
	UNIT_CHECK(client_send_frame(fd, WIRE_CANCEL, 4711, NULL, 0));
	frame = client_ask(fd, 3, &question);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	free(frame.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/* Frames of which only the beginning comes. */
#define CUT_FRAMES 20
#define CUT_FRAME_SIZE ((uint32_t) 60 * 1024 * 1024)

UNIT_TEST(frames_that_are_cut_off_give_their_room_back)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	ClientQuestion question = numbered_question(3);
	int			fd = client_open(&engine);

	/* together larger than what may be in memory, so that some are not even begun */
	for (int turn = 0; turn < 2; turn++)
	{
		const uint32_t beginning[5] = {CUT_FRAME_SIZE, WIRE_REQUEST, 1, 0, 99};
		int			cut[CUT_FRAMES];
		ClientFrame frame;

		for (int i = 0; i < CUT_FRAMES; i++)
		{
			cut[i] = client_open(&engine);
			UNIT_CHECK(client_send_bytes(cut[i], beginning, sizeof(beginning)));
		}
		for (int i = 0; i < CUT_FRAMES; i++)
			close(cut[i]);
		frame = client_ask(fd, (uint64_t) turn + 1, &question);
		UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
		free(frame.payload);
	}
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(without_a_model_every_request_hears_the_reason)
{
	ServedEngine engine = engine_serve("test/golden/no-such-model");
	int			fd = client_open(&engine);
	ClientQuestion question = numbered_question(0);
	ClientQuestion status = {.kind = WIRE_KIND_STATUS};
	ClientFrame frame = client_ask(fd, 1, &question);
	Status		failure;

	UNIT_EQUAL_INT(frame.header.type, WIRE_ERROR);
	wire_get_status(&frame.fields, &failure);
	UNIT_EQUAL_INT(failure.code, STATUS_MODEL_UNAVAILABLE);
	UNIT_CONTAINS(failure.message, "test/golden/no-such-model");
	UNIT_CONTAINS(failure.detail, "config.json");
	UNIT_CONTAINS(failure.hint, "mmgpt_restart()");
	free(frame.payload);
	frame = client_ask(fd, 2, &status);
	UNIT_EQUAL_INT(frame.header.type, WIRE_ANSWER);
	free(frame.payload);
	close(fd);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

UNIT_TEST(only_the_account_may_use_the_socket)
{
	ServedEngine engine = engine_serve(DEMO_MODEL);
	struct stat file;

	UNIT_EQUAL_INT(stat(engine.path, &file), 0);
	UNIT_EQUAL_INT(file.st_mode & 0777, 0600);
	UNIT_EQUAL_INT(engine_end(&engine), 0);
}

/*
 * Start an engine as the supervisor does, with a listening socket as descriptor 3 and a pipe as
 * standard input; *lifeline is the pipe's other end.
 */
static ServedEngine
engine_serve_with_lifeline(const char *model, int *lifeline)
{
	ServedEngine engine = {.directory = "/tmp/mmgpt-serve-XXXXXX"};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int			ends[2];
	int			listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	UNIT_CHECK(mkdtemp(engine.directory) != NULL && pipe2(ends, O_CLOEXEC) == 0);
	snprintf(engine.path, sizeof(engine.path), "%s/socket", engine.directory);
	strcpy(address.sun_path, engine.path);
	UNIT_EQUAL_INT(bind(listener, (struct sockaddr *) &address, sizeof(address)), 0);
	UNIT_EQUAL_INT(listen(listener, 16), 0);
	fflush(stdout);
	engine.pid = fork();
	if (engine.pid == 0)
	{
		/* away from the numbers that they are given, then there, where they stay open */
		int			pipe_end = fcntl(ends[0], F_DUPFD_CLOEXEC, 16);
		int			socket_end = fcntl(listener, F_DUPFD_CLOEXEC, 16);

		if (dup2(pipe_end, STDIN_FILENO) == STDIN_FILENO && dup2(socket_end, 3) == 3)
			execl("/proc/self/exe", "test", "--serve", model, "--listen-fd", "3", "--log-level",
				  "error", (char *) NULL);
		_exit(127);
	}
	close(ends[0]);
	close(listener);
	*lifeline = ends[1];
	return engine;
}

UNIT_TEST(the_end_of_the_lifeline_ends_the_engine)
{
	int			lifeline;
	ServedEngine engine = engine_serve_with_lifeline(DEMO_MODEL, &lifeline);
	ClientQuestion question = {
		.kind = WIRE_KIND_CHAT, .prompt = "Tell me a story.", .options = LONG_ANSWER};
	int			fd = client_open(&engine);
	int			status = -1;

	/* also while it works */
	UNIT_CHECK(client_send_question(fd, 1, &question));
	UNIT_CHECK(status_becomes(fd, "requests", "running", 1));
	UNIT_EQUAL_INT(waitpid(engine.pid, &status, WNOHANG), 0);
	close(lifeline);
	UNIT_EQUAL_INT(waitpid(engine.pid, &status, 0), engine.pid);
	UNIT_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	close(fd);
	unlink(engine.path);
	rmdir(engine.directory);
}

int
main(int argc, char **argv)
{
	int			result;

	serve_if_asked(argc, argv);
	result = unit_run(argc, argv);
	for (int i = 0; i < PICTURES; i++)
		free(pictures[i]);
	return result;
}
